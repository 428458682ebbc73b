"""Reading the configuration file again: all is checked first, and a mistake changes nothing.

Only VMs that came from the file are its business. Once it is read there is no checkpoint from the
first look at who is attached to the last change, so nothing moves in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from vhost_balloon.config import Config
from vhost_balloon.config_file import ConfigFile, read_config_file
from vhost_balloon.errors import OperatorError
from vhost_balloon.fleet import Fleet, Member
from vhost_balloon.listeners import find_group
from vhost_balloon.vm import Vm
from vhost_balloon.vm_settings import VmSettings
from vhost_balloon.vm_spec import Origin, VmSpec


@dataclass(slots=True)
class Plan:
    """What a file asks for. opened: sockets of added VMs, and of moved ones, whose path changed.

    leaving: VMs to go, or to follow their path, once their front end has gone; with what is to
    follow them.
    """

    opened: list[Member] = field(default_factory=list)
    removed: list[Vm] = field(default_factory=list)
    moved: list[Vm] = field(default_factory=list)
    leaving: list[tuple[Vm, VmSpec | None]] = field(default_factory=list)
    changed: list[tuple[Vm, VmSpec]] = field(default_factory=list)
    kept: list[Vm] = field(default_factory=list)

    def added(self) -> list[str]:
        moved = {vm.id for vm in self.moved}
        return [member.spec.id for member in self.opened if member.spec.id not in moved]

    def summary(self) -> dict[str, list[str]]:
        """Names of VMs by what becomes of them."""
        return {
            "added": self.added(),
            "removed": [vm.id for vm in self.removed],
            "leaving": [vm.id for vm, _ in self.leaving],
            "changed": [vm.id for vm in self.moved] + [vm.id for vm, _ in self.changed],
            "kept": [vm.id for vm in self.kept],
        }


class Configuration:
    """The configuration in force: what was given at the start, and the file's last good state."""

    def __init__(self, config: Config, fleet: Fleet) -> None:
        self._config = config
        self._fleet = fleet
        self._file = config.file
        self._reading = trio.Lock()

    @property
    def defaults(self) -> VmSettings:
        """Settings of a VM that is added without saying them."""
        return self._config.defaults if self._file is None else self._file.defaults

    async def reload(self) -> dict[str, list[str]]:
        """Read the file again and follow it; names of VMs by what became of them.

        Raises OperatorError without having changed anything.
        """
        if self._file is None:
            raise OperatorError("this daemon was started without --config")
        async with self._reading:
            # A large file takes a second, in which guests want to be answered.
            file = await trio.to_thread.run_sync(
                read_config_file, self._file.path, self._config.defaults, abandon_on_cancel=True
            )
            with self._planned(file) as plan:
                self._check(file, plan)
            self._carry_out(plan)
            self._file = file
            return plan.summary()

    @contextmanager
    def _planned(self, file: ConfigFile) -> Iterator[Plan]:
        """Make a plan; should anything fail, close what was opened for it."""
        plan = Plan()
        try:
            self._plan(file, plan)
            yield plan
        except BaseException:
            for member in plan.opened:
                member.close()
            raise

    def _plan(self, file: ConfigFile, plan: Plan) -> None:
        vms = self._fleet.machine.vms.values()
        present = {vm.id: vm for vm in vms if vm.spec.origin is Origin.CONFIG}
        others = [vm.spec for vm in vms if vm.spec.origin is not Origin.CONFIG]
        file.check_against(others, self._config.control_path)
        for spec in file.vms:
            vm = present.pop(spec.id, None)
            with file.blamed(spec):
                if vm is None:
                    self._fleet.check(spec)
                    plan.opened.append(self._fleet.open(spec))
                elif vm.socket_path == spec.socket_path:
                    if vm.spec == spec:
                        plan.kept.append(vm)
                    else:
                        plan.changed.append((vm, spec))
                elif self._fleet.is_free(vm):
                    plan.opened.append(self._fleet.open(spec))
                    plan.moved.append(vm)
                else:
                    plan.leaving.append((vm, spec))
        for vm in present.values():
            if self._fleet.is_free(vm):
                plan.removed.append(vm)
            else:
                plan.leaving.append((vm, None))

    def _check(self, file: ConfigFile, plan: Plan) -> None:
        """Raises OperatorError for what only shows once the whole plan is known."""
        for _, spec in plan.changed:
            with file.blamed(spec):
                find_group(spec.settings.access.group)
        for member in plan.opened[:1]:
            with file.blamed(member.spec):
                self._fleet.check_memory(len(plan.added()) - len(plan.removed))

    def _carry_out(self, plan: Plan) -> None:
        for vm in plan.removed + plan.moved:
            self._fleet.forget(vm)
        for member in plan.opened:
            self._fleet.admit(member)
        for vm, successor in plan.leaving:
            self._fleet.leave(vm, successor)
        for vm in plan.kept:
            self._fleet.stay(vm)
        for vm, spec in plan.changed:
            self._fleet.stay(vm)
            self._change(vm, spec)

    def _change(self, vm: Vm, spec: VmSpec) -> None:
        access, vm_access = spec.settings.access, vm.settings.access
        vm.change(spec)
        listening = self._fleet.listening(vm)
        if access == vm_access or listening is None:
            return
        try:
            listening.set_access(access)
        except OperatorError as error:
            # Somebody took the socket's file away: no mistake of the configuration.
            vm.log.warning(str(error))
