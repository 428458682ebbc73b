"""Guest level: the same real guest inflates and deflates, with QEMU's balloon and the daemon's.

Both guests run at the same time, the one that is not measured idle; they take turns in going
first. Free page reporting is off on both sides, and the memory that the balloon takes was used
before, so that each inflated page is one that the host gets back.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Final

from tests.benchmarks.report import Bar, Row
from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.inside.workload import fill, free
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.qmp import QMPClient

POLL_SECONDS: Final = 0.005
MOVE_SECONDS: Final = 300.0
KEPT_SHARE: Final = 0.9
"""Of the inflated bytes, what has to have come back to the host for the round to count."""

_QEMU_BALLOON: Final = ("-device", "virtio-balloon-pci,id=balloon0,deflate-on-oom=on")


class NotInflated(Exception):
    """The balloon has its size, and the host did not get the memory."""


class Subject:
    """A guest, and who gives its balloon orders."""

    def __init__(self, name: str, guest: Guest, qmp: QMPClient) -> None:
        self.name = name
        self._guest = guest
        self._qmp = qmp

    def round_trip(self, size: int) -> tuple[float, float]:
        """Use size bytes, free them, then inflate and deflate so much; return the seconds.

        Raises:
            NotInflated: the host has not got what was inflated.
        """
        memory = self._guest.memory.size
        fill(self._guest, size)
        free(self._guest)
        before = self._guest.resident()
        inflating = self._move(memory - size)
        freed = before - self._guest.resident()
        if freed < KEPT_SHARE * size:
            raise NotInflated(f"{self.name}: {freed} of {size} bytes came back")
        return inflating, self._move(memory)

    def _move(self, target: int) -> float:
        """Order a size and return the seconds until the guest has it."""
        started = time.perf_counter()
        self._qmp.execute("balloon", {"value": target})
        while self._qmp.execute("query-balloon")["actual"] != target:
            if time.perf_counter() - started > MOVE_SECONDS:
                raise NotInflated(f"{self.name}: not at {target} in {MOVE_SECONDS} s")
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - started


def measure(rounds: int, *, memory: int = GiB, size: int = 512 * MiB) -> list[Row]:
    """Inflate and deflate size bytes in guests of so much memory, `rounds` times each."""
    inflating: dict[str, list[float]] = {"daemon": [], "qemu": []}
    deflating: dict[str, list[float]] = {"daemon": [], "qemu": []}
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon("--stats-interval=0", "--no-reporting"))
        ours = stack.enter_context(Guest(daemon.socket, memory=Memory(memory)))
        theirs = Guest(memory=Memory(memory), qemu_arguments=_QEMU_BALLOON)
        stack.enter_context(theirs)
        control = daemon.qmp()
        stack.callback(control.close)
        subjects = [Subject("daemon", ours, control), Subject("qemu", theirs, theirs.qmp)]
        for number in range(rounds):
            for subject in subjects:
                inflated, deflated = subject.round_trip(size)
                inflating[subject.name].append(inflated)
                deflating[subject.name].append(deflated)
            subjects.reverse()
            print(f"guest: round {number + 1} of {rounds}", file=sys.stderr)
    over = {"of qemu": ("daemon", "qemu")}
    work = f"{size // MiB} MiB in a real guest ({ours.accel})"
    return [
        Row(f"inflate {work}", "s", inflating, over, [Bar("of qemu", 1.0, 0.95, at_most=True)]),
        Row(f"deflate {work}", "s", deflating, over, [Bar("of qemu", 1.15, 0.95, at_most=True)]),
    ]
