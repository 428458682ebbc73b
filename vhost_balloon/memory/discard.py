"""Gives memory back to the host: punches holes in bounded pieces, and measures what came back.

Holes are punched because on shared memory MADV_DONTNEED reports success and frees nothing. What
came back is the change of a file's st_blocks, but never more than was punched. Pieces are punched
one after the other, so that no two measure the same change. It is exact while the guest stands
still, and an estimate while it runs: the guest may touch other pages meanwhile, and the front end
may punch holes of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from vhost_balloon.memory import syscalls
from vhost_balloon.memory.ranges import Range, split
from vhost_balloon.memory.region import MappedRegion, Part
from vhost_balloon.memory.vector import RangeVector

PIECE_BYTES: Final = 8 << 20
PIECE_RANGES: Final = 512
"""Bounds of a piece, after which all other tasks run: some 1.6 ms, or 9 ms for scattered pages that
a running processor has mapped."""

REMOVE_RANGES: Final = 8
"""From this many ranges on, one process_madvise is cheaper than a call for each range."""

BLOCK: Final = 512
"""Bytes in a unit of st_blocks."""


class PunchResult(NamedTuple):
    """freed: bytes that came back. failed: bytes that the kernel refused; error: its last error.
    seconds: how long it took."""

    freed: int
    failed: int
    error: OSError | None
    seconds: float


def pieces(part: Part) -> Iterable[Part]:
    """Cut a part into pieces of at most PIECE_BYTES and PIECE_RANGES, in order.

    Ranges are cut at multiples of PIECE_BYTES from their start, which are aligned to any page size
    up to PIECE_BYTES. Larger huge pages are never cut.
    """
    if part.size <= PIECE_BYTES and len(part.ranges) <= PIECE_RANGES:
        return (part,)
    return _pieces(part)


def _pieces(part: Part) -> Iterator[Part]:
    for first in range(0, len(part.ranges), PIECE_RANGES):
        ranges = part.ranges.part(first, first + PIECE_RANGES)
        some = Part(part.region, ranges, ranges.total())
        if some.size <= PIECE_BYTES:
            yield some
        else:
            yield from _cut(some)


def _cut(part: Part) -> Iterator[Part]:
    region = part.region
    longest = max(PIECE_BYTES, region.page_size)
    taken: list[Range] = []
    room = PIECE_BYTES
    for whole in part.ranges:
        for start, end in split(*whole, longest):
            if taken and end - start > room:
                yield Part(region, RangeVector.of(taken), PIECE_BYTES - room)
                taken, room = [], PIECE_BYTES
            taken.append((start, end))
            room -= end - start
    yield Part(region, RangeVector.of(taken), PIECE_BYTES - room)


def punch(piece: Part) -> PunchResult:
    """Punch one piece out of its file. A range that fails is counted, and the rest is punched."""
    started = time.perf_counter()
    region, ranges, size = piece
    fd = region.fd.fileno()
    count = len(ranges.starts)
    before = _blocks(fd)
    done = _remove(region, ranges) if count >= REMOVE_RANGES else 0
    failed, error = 0, None
    if done < count:
        failed, error = _punch_each(region, ranges.part(done, count) if done else ranges)
    after = _blocks(fd)
    freed = 0
    if before is not None and after is not None:
        freed = min(max(before - after, 0) * BLOCK, size - failed)
    return PunchResult(freed, failed, error, time.perf_counter() - started)


def _punch_each(region: MappedRegion, ranges: RangeVector) -> tuple[int, OSError | None]:
    """Returns how many bytes failed, and the last error."""
    fd, to_file = region.fd.fileno(), region.to_file
    failed, last_error = 0, None
    for start, end in ranges:
        try:
            syscalls.punch_hole(fd, start + to_file, end - start)
        except OSError as error:
            failed, last_error = failed + end - start, error
    return failed, last_error


def _remove(region: MappedRegion, ranges: RangeVector) -> int:
    """Punch ranges through the region's mapping, in order. Returns how many were punched.

    Only on tmpfs: hugetlb ranges are few, and on other file systems the effect of MADV_REMOVE is
    unknown.
    """
    if region.filesystem.kind != "tmpfs":
        return 0
    to_file = region.to_file
    # The kernel would round partial pages up, and also punch mappings beside this one.
    if to_file % syscalls.PAGE_SIZE or not ranges.is_aligned(syscalls.PAGE_SIZE):
        return 0
    with region.borrowed() as (origin, mapped):
        first, end = ranges.start + to_file, ranges.end + to_file
        if not mapped.start <= first < end <= mapped.stop:
            return 0
        return syscalls.remove(origin + to_file, ranges)


def _blocks(fd: int) -> int | None:
    """The file's st_blocks, or None if its file system, which may be the front end's, fails."""
    try:
        return os.fstat(fd).st_blocks
    except OSError:
        return None
