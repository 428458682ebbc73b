"""Guest level: inflates and deflates the same real guest with QEMU's balloon and the daemon's.

Both guests run at the same time, one idle while the other is measured; they take turns going
first. Free page reporting is off on both sides, and the memory that the balloon takes was used
before, so the host gets back every inflated page.
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
"""Share of the inflated bytes that the host must get back for the round to count."""

_QEMU_BALLOON: Final = ("-device", "virtio-balloon-pci,id=balloon0,deflate-on-oom=on")


class NotInflated(Exception):
    """The balloon has its size, but the host did not get the memory."""


class Subject:
    """A guest and the QMP connection that controls its balloon."""

    def __init__(self, name: str, guest: Guest, qmp: QMPClient) -> None:
        self.name = name
        self._guest = guest
        self._qmp = qmp

    def round_trip(self, size: int) -> tuple[float, float]:
        """Use and free size bytes, then inflate and deflate as much; return both times in seconds.

        Raises:
            NotInflated: the host did not get the inflated memory.
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
        """Set the target and return the seconds until the guest reaches it."""
        started = time.perf_counter()
        self._qmp.execute("balloon", {"value": target})
        while self._qmp.execute("query-balloon")["actual"] != target:
            if time.perf_counter() - started > MOVE_SECONDS:
                raise NotInflated(f"{self.name}: not at {target} in {MOVE_SECONDS} s")
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - started


def measure(rounds: int, *, memory: int = GiB, size: int = 384 * MiB) -> list[Row]:
    """Inflate and deflate size bytes in guests with memory bytes, `rounds` times each."""
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
        Row(f"inflate {work}", "s", inflating, over, [Bar("of qemu", 0.95, at_most=True)]),
        Row(f"deflate {work}", "s", deflating, over, [Bar("of qemu", 1.15, at_most=True)]),
    ]
