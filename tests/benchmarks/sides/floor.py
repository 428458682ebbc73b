"""The floor: what the kernel takes to free the same ranges, asked by a process that does only that.

The ranges of one kick are merged. There are two ways, of which the faster is the floor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.benchmarks.programs.neighbour import Neighbour
from tests.benchmarks.sides.side import Side, guest_ram
from tests.benchmarks.works import FIRST, PAGE, Work
from vhost_balloon.simulator.memory import GuestRam


class Floor(Side):
    """One way. puncher: the process that frees; the neighbour populates, as for the devices."""

    def __init__(self, ram: GuestRam, neighbour: Neighbour, puncher: Neighbour) -> None:
        super().__init__(ram, neighbour)
        self.pid = puncher.pid
        self._puncher = puncher


class Fallocate(Floor):
    """One fallocate for each range."""

    name = "by fallocate"

    def give_back(self, work: Work) -> float:
        return self._puncher.punch(item for kick in work.merged() for item in kick)


class ProcessMadvise(Floor):
    """One process_madvise(MADV_REMOVE) for each kick, or for 1,024 of its ranges."""

    name = "by process_madvise"

    def give_back(self, work: Work) -> float:
        seconds = self._puncher.remove(work.merged())
        assert seconds is not None
        return seconds


@contextmanager
def floors(memory: int) -> Iterator[Sequence[Floor]]:
    """Run the puncher, with that many bytes of memory. Yields the ways that the kernel offers."""
    with (
        guest_ram(memory) as (ram, neighbour),
        Neighbour(ram.regions[0].fd, memory) as puncher,
    ):
        ways: list[Floor] = [Fallocate(ram, neighbour, puncher)]
        if puncher.remove([[(FIRST, FIRST + PAGE)]]) is None:
            print("device: this kernel has no process_madvise for the floor", file=sys.stderr)
        else:
            ways.append(ProcessMadvise(ram, neighbour, puncher))
        yield ways
