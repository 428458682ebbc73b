"""The parts of a soak: systemd with a daemon per VM, real guests and the herd; and their costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.rig import process
from tests.rig.guest import Guest
from tests.rig.memory import Memory, MiB
from tests.rig.provisioning.packages import SYSTEMD, TREES, provision
from tests.rig.systemd import Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.vms.remote import Remote

REAL_RAM: Final = 512 * MiB
SIMULATED_RAM: Final = 16 * MiB
PROBE: Final = "probe"
VISITED: Final = ("bad0", "bad1")


@dataclass(frozen=True)
class Costs:
    """The daemons' resources: open and stored descriptors by VM; total proportional memory
    (bytes)."""

    descriptors: dict[str, tuple[int, int]]
    memory: int

    def __str__(self) -> str:
        opened, stored = zip(*self.descriptors.values(), strict=True)
        count = len(self.descriptors)
        return (
            f"{count} daemons, each {min(opened)} to {max(opened)} open and {min(stored)} to "
            f"{max(stored)} stored descriptors; {self.memory / MiB / count:.1f} MiB on average"
        )


@dataclass(frozen=True)
class Fleet:
    """A running soak. Real guests by VM; the herd has the simulated ones."""

    host: SystemdHost
    herd: Remote
    real: dict[str, Guest]
    simulated: list[str]

    @property
    def vms(self) -> list[str]:
        """All VMs that have a daemon."""
        return [*self.real, *self.simulated, *VISITED, PROBE]

    def query(self, vm: str) -> dict[str, Any]:
        with self.host.qmp(Instance(vm).control) as qmp:
            found: dict[str, Any] = qmp.execute("query-vms")[0]
        return found

    def order(self, vm: str, value: int) -> None:
        """Set a VM's target."""
        with self.host.qmp(Instance(vm).control) as qmp:
            qmp.execute("balloon", {"value": value})

    def restore(self) -> None:
        """Empty all balloons, with the herd at rest."""
        sizes = dict.fromkeys(self.real, REAL_RAM) | dict.fromkeys(self.simulated, SIMULATED_RAM)
        for vm, size in sizes.items():
            self.order(vm, size)
        wait_until(lambda: all(self.query(vm).get("actual") == sizes[vm] for vm in sizes), 120)

    def costs(self) -> Costs:
        """Measure at rest, once nothing changes any longer."""
        while True:
            found = self._costs()
            time.sleep(0.5)
            after = self._costs()
            if found.descriptors == after.descriptors:
                return after

    def _costs(self) -> Costs:
        descriptors, memory = {}, 0
        for vm in self.vms:
            service = Instance(vm).service
            pid = self.host.daemon_pid(service)
            stored = int(self.host.show(service, "NFileDescriptorStore"))
            descriptors[vm] = (len(process.fds(pid)), stored)
            memory += process.pss(pid)
        return Costs(descriptors, memory)


@contextmanager
def running(real: int, simulated: int, seed: int) -> Iterator[Fleet]:
    """Start everything and wait until every guest's driver is ready."""
    provision((*TREES, SYSTEMD))
    names = [f"sim{number}" for number in range(simulated)]
    guests = [f"real{number}" for number in range(real)]
    with ExitStack() as stack:
        host = stack.enter_context(SystemdHost())
        host.install()
        stack.enter_context(host.options("--discard=always", "--stats-interval=1"))
        instances = {vm: Instance(vm) for vm in (*guests, *names, *VISITED, PROBE)}
        host.systemctl("start", *(found.socket for found in instances.values()))
        # VMs whose front ends only visit have no daemon yet.
        host.systemctl("start", *(instances[vm].service for vm in VISITED))
        sockets = {vm: host.path(found.path) for vm, found in instances.items()}
        herd = stack.enter_context(Remote("tests.soak.herd", host.forker))
        herd.call(
            "attach",
            seed=seed,
            guests={vm: str(sockets[vm]) for vm in names},
            probe=str(sockets[PROBE]),
            visited=[str(sockets[vm]) for vm in VISITED],
        )
        booted = stack.enter_context(_booted(host, {vm: sockets[vm] for vm in guests}))
        fleet = Fleet(host, herd, booted, names)
        wait_until(lambda: all(fleet.query(vm)["driver-ready"] for vm in (*guests, *names)), 60)
        try:
            yield fleet
        except Exception as error:
            lines = host.journal("vhost-balloon@*.service").splitlines()
            usual = ("front end gone", "front end attached", ": refused ", "left out")
            told = [line for line in lines if not any(text in line for text in usual)]
            error.add_note("\n".join(told[-60:]))
            raise


@contextmanager
def _booted(host: SystemdHost, sockets: dict[str, Path]) -> Iterator[dict[str, Guest]]:
    """Boot the real guests in parallel."""
    guests = {
        vm: Guest(path, memory=Memory(REAL_RAM), forker=host.forker) for vm, path in sockets.items()
    }
    try:
        with ThreadPoolExecutor() as threads:
            list(threads.map(Guest.start, guests.values()))
        yield guests
    finally:
        for guest in guests.values():
            guest.close()
