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
from dataclasses import dataclass
from typing import Final

from vhost_balloon.memory import syscalls
from vhost_balloon.memory.ranges import Range, split, total
from vhost_balloon.memory.region import MappedRegion, Part

PIECE_BYTES: Final = 8 << 20
PIECE_RANGES: Final = 256
"""Bounds of a piece, after which all other tasks run: some 2 ms. Scattered pages cost 7 to 30 us
each."""

REMOVE_RANGES: Final = 16
"""From this many ranges on, one process_madvise is cheaper than a call for each range."""

BLOCK: Final = 512
"""Bytes in a unit of st_blocks."""


@dataclass(slots=True)
class PunchResult:
    """freed: bytes that came back. huge_pages: how many host pages larger than the balloon's they
    are. failed: bytes that the kernel refused; error: its last error."""

    freed: int = 0
    huge_pages: int = 0
    failed: int = 0
    seconds: float = 0.0
    error: OSError | None = None


def pieces(parts: list[Part]) -> Iterable[list[Part]]:
    """Cut parts into pieces of at most PIECE_BYTES and PIECE_RANGES, in order.

    Ranges are cut at multiples of PIECE_BYTES from their start, which are aligned to any page size
    up to PIECE_BYTES. Larger huge pages are never cut.
    """
    if count_of(parts) <= PIECE_RANGES and size_of(parts) <= PIECE_BYTES:
        return (parts,) if parts else ()
    return _cut(parts)


def _cut(parts: list[Part]) -> Iterator[list[Part]]:
    piece: list[Part] = []
    room, places = PIECE_BYTES, PIECE_RANGES
    for region, ranges, _ in parts:
        taken: list[Range] = []
        for whole in ranges:
            for start, end in split(*whole, max(PIECE_BYTES, region.page_size)):
                if (piece or taken) and (end - start > room or not places):
                    yield [*piece, *_part(region, taken)]
                    piece, taken = [], []
                    room, places = PIECE_BYTES, PIECE_RANGES
                taken.append((start, end))
                room -= end - start
                places -= 1
        piece += _part(region, taken)
    if piece:
        yield piece


def _part(region: MappedRegion, ranges: list[Range]) -> list[Part]:
    return [Part(region, ranges, total(ranges))] if ranges else []


def size_of(parts: list[Part]) -> int:
    """Bytes."""
    return sum([part.size for part in parts])


def count_of(parts: list[Part]) -> int:
    """Ranges."""
    return sum([len(part.ranges) for part in parts])


def punch(piece: list[Part]) -> PunchResult:
    """Punch one piece out of its files. A range that fails is counted, and the rest is punched."""
    result = PunchResult()
    started = time.perf_counter()
    for part in piece:
        _punch_part(part, result)
    result.seconds = time.perf_counter() - started
    return result


def _punch_part(part: Part, result: PunchResult) -> None:
    region, ranges, size = part
    fd, failed = region.fd.fileno(), result.failed
    before = _blocks(fd)
    done = _remove(region, ranges) if len(ranges) >= REMOVE_RANGES else 0
    _punch_each(region, ranges[done:] if done else ranges, result)
    after = _blocks(fd)
    if before is None or after is None:
        return
    punched = size - (result.failed - failed)
    freed = min(max(before - after, 0) * BLOCK, punched)
    result.freed += freed
    if region.grid is not None:
        result.huge_pages += freed // region.page_size


def _punch_each(region: MappedRegion, ranges: list[Range], result: PunchResult) -> None:
    fd, to_file = region.fd.fileno(), region.to_file
    for start, end in ranges:
        try:
            syscalls.punch_hole(fd, start + to_file, end - start)
        except OSError as error:
            result.failed += end - start
            result.error = error


def _remove(region: MappedRegion, ranges: list[Range]) -> int:
    """Punch ranges through the region's mapping, in order. Returns how many were punched.

    Only on tmpfs: hugetlb ranges are few, and on other file systems the effect of MADV_REMOVE is
    unknown.
    """
    if region.filesystem.kind != "tmpfs":
        return 0
    with region.borrowed() as (origin, mapped):
        origin += region.to_file
        bits = origin
        for start, end in ranges:
            bits |= start | end
        # The kernel would round partial pages up, and also punch mappings beside this one.
        first, last = ranges[0][0] + region.to_file, ranges[-1][1] + region.to_file
        if bits % syscalls.PAGE_SIZE or not mapped.start <= first < last <= mapped.stop:
            return 0
        return syscalls.remove(origin, ranges)


def _blocks(fd: int) -> int | None:
    """The file's st_blocks, or None if its file system, which may be the front end's, fails."""
    try:
        return os.fstat(fd).st_blocks
    except OSError:
        return None
