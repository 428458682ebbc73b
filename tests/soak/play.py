"""The random actions of a soak: targets, pauses, bad control clients, restarts."""

from __future__ import annotations

import itertools
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.rig.errors import QMPError
from tests.rig.memory import MiB
from tests.rig.systemd import Instance
from tests.soak.fleet import PROBE, REAL_RAM, SIMULATED_RAM, Fleet

LEAST_REAL: Final = 320 * MiB
"""The minimum that a real guest keeps for its workload."""
BETWEEN_RESTARTS: Final = 1.0
PACE: Final = 0.25
"""Minimum seconds between two restarts, and between two actions."""
BESIDE: Final = "beside others"
CONTROL_INPUT: Final = (b"{", b"\x00\xff" * 50, b'{"execute":"query-vms"}\n', b"[" * 5000, b"\n")


class Play:
    """Runs one action after another. Restarts the daemons in turn, every second time the probe's.

    Attributes:
        waited: the probe's longest wait for its balloon (seconds), by kind of restart of its own
            daemon; BESIDE covers the time in between, with all restarts of other daemons.
    """

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.waited: dict[str, float] = {}
        self._fleet = fleet
        self._random = random.Random(seed)
        self._restarted = time.monotonic()
        others = [vm for vm in fleet.vms if vm != PROBE]
        self._random.shuffle(others)
        self._turns = itertools.cycle([vm for other in others for vm in (other, PROBE)])
        self._restarts: dict[str, Callable[[Instance], None]] = {
            "SIGKILL": self._kill,
            "systemctl restart": self._restart,
            "SIGHUP": self._hang_up,
        }

    def run(self, seconds: float) -> None:
        """Play for that many seconds; restart the probe's daemon at least once in each way."""
        until = time.monotonic() + seconds
        for kind in self._restarts:
            self.restart(kind, PROBE)
        while time.monotonic() < until:
            self.act()
            time.sleep(PACE)

    def restart_all(self) -> None:
        """Restart every daemon with the state its predecessor left."""
        for vm in self._fleet.vms:
            self.restart("systemctl restart", vm)

    def act(self) -> None:
        if time.monotonic() - self._restarted > BETWEEN_RESTARTS:
            self.restart(self._random.choice(list(self._restarts)), next(self._turns))
            return
        what = self._random.choices((self._target, self._pause, self._bad_client), (8, 1, 1))[0]
        what()

    def restart(self, kind: str, vm: str) -> None:
        self._note(BESIDE)
        instance = Instance(vm)
        # After many unexpected exits systemd would delay restarts more and more.
        self._fleet.host.systemctl("reset-failed", instance.service)
        self._restarts[kind](instance)
        self._fleet.query(vm)
        self.counts[kind] += 1
        if vm == PROBE:
            self._note(kind)
        self._restarted = time.monotonic()

    def _note(self, kind: str) -> None:
        waited = float(self._fleet.herd.call("longest"))
        self.waited[kind] = max(self.waited.get(kind, 0.0), waited)

    def _kill(self, vm: Instance) -> None:
        host = self._fleet.host
        host.wait_replaced(host.kill(unit=vm.service), vm.service)

    def _restart(self, vm: Instance) -> None:
        self._fleet.host.systemctl("restart", vm.service)

    def _hang_up(self, vm: Instance) -> None:
        """The process stays; a control client's connection ends.

        On a host that is too busy the reload may be postponed; the daemon must continue. Rare.
        """
        host = self._fleet.host
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(host.path(vm.control)))
            client.recv(1)
            host.systemctl("kill", "--kill-whom=main", "--signal=HUP", vm.service)
            try:
                while client.recv(4096):
                    pass
            except TimeoutError:
                if "not re-executed" not in host.journal(vm.service)[-20_000:]:
                    raise
                self.counts["SIGHUP put off"] += 1
                self.counts["SIGHUP"] -= 1  # restart() counts it next

    def _target(self) -> None:
        vms = [*self._fleet.real, *self._fleet.simulated]
        vm = self._random.choice(vms)
        real = vm in self._fleet.real
        least, most = (LEAST_REAL, REAL_RAM) if real else (SIMULATED_RAM // 2, SIMULATED_RAM)
        try:
            self._fleet.order(vm, self._random.randrange(least, most, MiB))
            self.counts["targets"] += 1
        except QMPError:
            self.counts["targets of the disconnected"] += 1

    def _pause(self) -> None:
        guest = self._random.choice(list(self._fleet.real.values()))
        guest.stop()
        time.sleep(self._random.uniform(0, 0.5))
        guest.cont()
        self.counts["real stop/cont"] += 1

    def _bad_client(self) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            vm = self._random.choice(self._fleet.vms)
            client.connect(str(self._fleet.host.path(Instance(vm).control)))
            client.sendall(self._random.choice(CONTROL_INPUT))
            client.recv(1)
        self.counts["bad control clients"] += 1
