"""What a soak runs: systemd with the daemon, two real guests, the herd; and what they cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.guests import wait_until
from tests.remote import Remote
from tests.rig import process
from tests.rig.guest import Guest
from tests.rig.memory import Memory, MiB
from tests.rig.packages import SYSTEMD, TREES, provision
from tests.rig.systemd import SERVICE, SystemdHost

REAL_RAM: Final = 512 * MiB
SIMULATED_RAM: Final = 16 * MiB
CONFIG: Final = "/etc/vhost-balloon.toml"


@dataclass(frozen=True)
class Costs:
    """What the daemon holds: descriptors that are open and stored, proportional memory (bytes)."""

    open: int
    stored: int
    memory: int

    def __str__(self) -> str:
        return f"{self.open} open, {self.stored} stored descriptors, {self.memory / MiB:.1f} MiB"


@dataclass(frozen=True)
class Fleet:
    """All of it, running. Real guests by VM; simulated ones are the herd's."""

    host: SystemdHost
    herd: Remote
    real: dict[str, Guest]
    simulated: list[str]

    def query(self) -> dict[str, dict[str, Any]]:
        with self.host.qmp() as qmp:
            return {vm["id"]: vm for vm in qmp.execute("query-vms")}

    def order(self, vm: str, value: int) -> None:
        """Give a VM a target."""
        with self.host.qmp() as qmp:
            qmp.execute("balloon", {"id": vm, "value": value})

    def restore(self) -> None:
        """Have all balloons empty, with the herd at rest."""
        sizes = dict.fromkeys(self.real, REAL_RAM) | dict.fromkeys(self.simulated, SIMULATED_RAM)
        for vm, size in sizes.items():
            self.order(vm, size)
        wait_until(lambda: all(self.query()[vm].get("actual") == sizes[vm] for vm in sizes), 120)

    def costs(self) -> Costs:
        """At rest: once nothing changes any more."""
        while True:
            found = self._costs()
            time.sleep(0.5)
            after = self._costs()
            if (found.open, found.stored) == (after.open, after.stored):
                return after

    def _costs(self) -> Costs:
        pid = self.host.daemon_pid()
        stored = int(self.host.show(SERVICE, "NFileDescriptorStore"))
        return Costs(len(process.fds(pid)), stored, process.pss(pid))


@contextmanager
def running(real: int, simulated: int, seed: int) -> Iterator[Fleet]:
    """Start everything, and wait until every guest's driver is ready."""
    provision((*TREES, SYSTEMD))
    names = [f"sim{number}" for number in range(simulated)]
    guests = [f"real{number}" for number in range(real)]
    visited = ["bad0", "bad1"]
    with ExitStack() as stack:
        host = stack.enter_context(SystemdHost())
        host.install()
        paths = {vm: f"/run/vhost-balloon/{vm}.sock" for vm in (*guests, *names, *visited, "probe")}
        tables = (f'[vm.{vm}]\nsocket-path = "{path}"\n' for vm, path in paths.items())
        host.write(CONFIG, "".join(tables))
        options = ("--discard=always", f"--config={CONFIG}", "--stats-interval=1")
        stack.enter_context(host.options(*options))
        host.systemctl("start", SERVICE)
        sockets = {vm: host.path(path) for vm, path in paths.items()}
        herd = stack.enter_context(Remote("tests.soak.herd", host.forker))
        herd.call(
            "attach",
            seed=seed,
            guests={vm: str(sockets[vm]) for vm in names},
            probe=str(sockets["probe"]),
            visited=[str(sockets[vm]) for vm in visited],
        )
        booted = stack.enter_context(_booted(host, {vm: sockets[vm] for vm in guests}))
        fleet = Fleet(host, herd, booted, names)
        wait_until(lambda: all(fleet.query()[vm]["driver-ready"] for vm in (*guests, *names)), 60)
        try:
            yield fleet
        except Exception as error:
            lines = host.journal(SERVICE).splitlines()
            usual = ("front end gone", "front end attached", ": refused ", "left out")
            told = [line for line in lines if not any(text in line for text in usual)]
            error.add_note("\n".join(told[-60:]))
            raise


@contextmanager
def _booted(host: SystemdHost, sockets: dict[str, Path]) -> Iterator[dict[str, Guest]]:
    """Real guests, booted beside each other."""
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
