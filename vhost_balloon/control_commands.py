"""The commands of the control socket: one table of what they take and what they do.

Names, arguments and results that QEMU has too are those of QEMU's qapi/{balloon,machine,qom}.json,
with one argument more: `id` says which VM. It may be left out while just one VM is attached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import trio

from protocol.qmp import ErrorClass, Json, Object, version
from protocol.virtio_balloon import STAT_NAMES, STAT_UNKNOWN
from vhost_balloon import __version__
from vhost_balloon.control_report import describe_vm
from vhost_balloon.errors import CommandError
from vhost_balloon.vm import Machine, Vm

INT64_MAX: Final = (1 << 63) - 1
UINT32_MAX: Final = (1 << 32) - 1

STATS_TIMEOUT: Final = 3000
MAX_STATS_TIMEOUT: Final = 60_000
"""Milliseconds, as QMP counts timeouts: of balloon-stats when it says nothing, and at most."""

QOM_TYPE: Final = "vhost-balloon"
"""What stands for the type's name in errors about properties."""

QOM_PREFIX: Final = "/machine/peripheral/"
STATS: Final = "guest-stats"
POLLING_INTERVAL: Final = "guest-stats-polling-interval"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument. kind: "integer" (64 bits, signed), "number", "boolean", "string", "array" or
    "any"."""

    name: str
    kind: str
    optional: bool = False


Handler: TypeAlias = "Callable[[Machine, dict[str, Any]], Json | Awaitable[Json]]"


@dataclass(frozen=True, slots=True)
class Command:
    """What a command takes and does.

    The handler gets checked arguments, returns the reply's "return" and raises CommandError if it
    fails; any other exception is our bug. One that has to wait returns an awaitable. then is
    called once the reply to a command that succeeded was sent.
    """

    handler: Handler
    parameters: tuple[Parameter, ...] = ()
    then: Callable[[], None] | None = None


def check_arguments(parameters: tuple[Parameter, ...], arguments: Object) -> dict[str, Any]:
    """Return the arguments once each is known, there, and of its type. Raises CommandError."""
    for parameter in parameters:
        if parameter.name in arguments:
            check_type(parameter.name, parameter.kind, arguments[parameter.name])
        elif not parameter.optional:
            raise CommandError(f"Parameter '{parameter.name}' is missing")
    known = {parameter.name for parameter in parameters}
    for name in arguments:
        if name not in known:
            raise CommandError(f"Parameter '{name}' is unexpected")
    return dict(arguments)


def _is_integer(value: Json) -> bool:
    """Whether value is a signed integer of 64 bits; true and 1.0 are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return -INT64_MAX - 1 <= value <= INT64_MAX


_KINDS: Final[Mapping[str, Callable[[Json], bool]]] = {
    "integer": _is_integer,
    "number": lambda value: isinstance(value, float) or _is_integer(value),
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "any": lambda value: True,
}


def check_type(name: str, kind: str, value: Json) -> None:
    """Raise CommandError if value is not of that kind (see Parameter)."""
    if not _KINDS[kind](value):
        raise CommandError(f"Invalid parameter type for '{name}', expected: {kind}")


def version_info() -> Object:
    major, minor, micro = (int(part) for part in __version__.split("."))
    return version(major, minor, micro, "vhost-balloon")


def _not_found(device: str) -> CommandError:
    return CommandError(f"Device '{device}' not found", ErrorClass.DEVICE_NOT_FOUND.value)


def _not_active(text: str = "") -> CommandError:
    text = f"No balloon device has been activated{text}"
    return CommandError(text, ErrorClass.DEVICE_NOT_ACTIVE.value)


def _attached_vm(machine: Machine, arguments: dict[str, Any]) -> Vm:
    """The VM that `id` names, or the one that is attached. Raises CommandError."""
    if "id" in arguments:
        vm = machine.vms.get(arguments["id"])
        if vm is None:
            raise _not_found(arguments["id"])
        if not vm.attached:
            raise _not_active(f": VM '{vm.id}' has no front end")
        return vm
    attached = [vm for vm in machine.vms.values() if vm.attached]
    if not attached:
        raise _not_active()
    if len(attached) > 1:
        raise CommandError(f"Parameter 'id' is missing: {len(attached)} VMs are attached")
    return attached[0]


def _balloon(machine: Machine, arguments: dict[str, Any]) -> Json:
    """Set a target in bytes. The reply says so if there is no driver yet to take it up."""
    vm = _attached_vm(machine, arguments)
    if arguments["value"] <= 0:
        raise CommandError("Parameter 'value' expects a size")
    vm.set_target(arguments["value"])
    statistics = vm.statistics(details=False)
    return {"pending": True} if statistics.pending or not statistics.driver_ready else {}


def _query_balloon(machine: Machine, arguments: dict[str, Any]) -> Json:
    vm = _attached_vm(machine, arguments)
    actual = vm.statistics(details=False).actual
    if actual is None:
        raise _not_active(f": the memory of VM '{vm.id}' is not known before its driver starts")
    return {"actual": actual}


async def _query_vms(machine: Machine, arguments: dict[str, Any]) -> Json:
    """All VMs, each as it is at its moment: 500 take 0.2 s, in which guests wait for their turn."""
    described: list[Json] = []
    for vm in list(machine.vms.values()):
        if described:
            await trio.lowlevel.checkpoint()
        if machine.vms.get(vm.id) is vm:  # else it was removed meanwhile
            described.append(describe_vm(vm.statistics()))
    return described


async def _balloon_stats(machine: Machine, arguments: dict[str, Any]) -> Json:
    """A fresh sample, as guest-stats has it; the guest has `timeout` milliseconds to give it."""
    vm = _attached_vm(machine, arguments)
    milliseconds = arguments.get("timeout", STATS_TIMEOUT)
    if not 0 < milliseconds <= MAX_STATS_TIMEOUT:
        raise CommandError(f"Parameter 'timeout' expects 1 to {MAX_STATS_TIMEOUT} milliseconds")
    await vm.fresh_stats(milliseconds / 1000)
    return _guest_stats(vm)


def _vm(machine: Machine, arguments: dict[str, Any]) -> Vm:
    """The VM that `id` names, attached or not; without `id` the attached one."""
    if "id" in arguments and arguments["id"] in machine.vms:
        return machine.vms[arguments["id"]]
    return _attached_vm(machine, arguments)


def _balloon_pause(machine: Machine, arguments: dict[str, Any]) -> Json:
    """Acknowledge reported pages without discarding them, until balloon-resume."""
    _vm(machine, arguments).paused = True
    return {}


def _balloon_resume(machine: Machine, arguments: dict[str, Any]) -> Json:
    _vm(machine, arguments).paused = False
    return {}


def _query_version(machine: Machine, arguments: dict[str, Any]) -> Json:
    return version_info()


def _qom_vm(machine: Machine, path: str) -> Vm:
    vm = machine.vms.get(path.removeprefix(QOM_PREFIX).rstrip("/"))
    if vm is None or not path.startswith(QOM_PREFIX):
        raise _not_found(path)
    return vm


def _guest_stats(vm: Vm) -> Json:
    statistics = vm.statistics(details=False)
    stats = {name: statistics.stats.get(tag, STAT_UNKNOWN) for tag, name in STAT_NAMES.items()}
    return {"stats": stats, "last-update": statistics.stats_last_update}


def _polling_interval(vm: Vm) -> Json:
    """A whole number as QEMU has it, unless the operator's option set a fraction of a second."""
    interval = vm.stats_interval
    return int(interval) if interval == int(interval) else interval


_PROPERTIES: Final[Mapping[str, Callable[[Vm], Json]]] = {
    STATS: _guest_stats,
    POLLING_INTERVAL: _polling_interval,
}


def _qom_get(machine: Machine, arguments: dict[str, Any]) -> Json:
    vm = _qom_vm(machine, arguments["path"])
    read = _PROPERTIES.get(arguments["property"])
    if read is None:
        raise CommandError(f"Property '{QOM_TYPE}.{arguments['property']}' not found")
    return read(vm)


def _qom_set(machine: Machine, arguments: dict[str, Any]) -> Json:
    vm, name, value = _qom_vm(machine, arguments["path"]), arguments["property"], arguments["value"]
    if name not in _PROPERTIES:
        raise CommandError(f"Property '{QOM_TYPE}.{name}' not found")
    if name != POLLING_INTERVAL:
        raise CommandError(f"Property '{QOM_TYPE}.{name}' is not writable")
    check_type(name, "integer", value)
    if value < 0:
        raise CommandError("timer value must be greater than zero")
    if value > UINT32_MAX:
        raise CommandError("timer value is too big")
    vm.stats_interval = float(value)
    return {}


_ID: Final = Parameter("id", "string", optional=True)
_PROPERTY: Final = (Parameter("path", "string"), Parameter("property", "string"))

COMMANDS: Final[Mapping[str, Command]] = {
    "balloon": Command(_balloon, (Parameter("value", "integer"), _ID)),
    "query-balloon": Command(_query_balloon, (_ID,)),
    "balloon-stats": Command(_balloon_stats, (Parameter("timeout", "integer", optional=True), _ID)),
    "balloon-pause": Command(_balloon_pause, (_ID,)),
    "balloon-resume": Command(_balloon_resume, (_ID,)),
    "query-vms": Command(_query_vms),
    "query-version": Command(_query_version),
    "qom-get": Command(_qom_get, _PROPERTY),
    "qom-set": Command(_qom_set, (*_PROPERTY, Parameter("value", "any"))),
}
"""All but what belongs to a client's session, or lists these commands (control)."""
