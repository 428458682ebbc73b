"""Giving memory back to the host: bounded batches of hole punches, and what really came back.

A hole is punched, because on shared memory MADV_DONTNEED reports success and frees nothing. What
came back is read from the files' st_blocks before and after: an estimate while the guest runs,
since it may touch other pages meanwhile, and exact while it does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

import trio

from vhost_balloon import syscalls
from vhost_balloon.guest_memory import MappedRegion, Piece
from vhost_balloon.ranges import split

BATCH_BYTES: Final = 64 << 20
"""Most bytes between two looks at whether the ring is to stop: some 20 ms of 4 KiB pages."""
BATCH_PIECES: Final = 1024
"""Most pieces in a batch: scattered pages cost 7 to 30 us each."""

INLINE_BYTES: Final = 2 << 20
INLINE_PIECES: Final = 8
"""Up to here (a millisecond) a thread would cost more than it saves the event loop."""

REMOVE_PIECES: Final = 16
"""From here on one process_madvise for a region's pieces is cheaper than a call for each."""

BLOCK: Final = 512


@dataclass(slots=True)
class Discarded:
    """Bytes: freed is what came back, failed what the kernel refused; error is its reason.

    Two batches on the same file at the same time each see what the other frees.
    """

    freed: int = 0
    failed: int = 0
    seconds: float = 0.0
    error: OSError | None = None


def batches(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Cut pieces into batches of at most BATCH_BYTES and BATCH_PIECES, in order.

    Cuts fall on multiples of BATCH_BYTES from a piece's start, which keeps them aligned to every
    page size up to it; a larger huge page is never cut.
    """
    if len(pieces) <= BATCH_PIECES and _size(pieces) <= BATCH_BYTES:
        if pieces:
            yield pieces
        return
    batch: list[Piece] = []
    room = BATCH_BYTES
    for piece in pieces:
        size = max(BATCH_BYTES, piece.region.page_size)
        for start, end in split(piece.offset, piece.offset + piece.length, size):
            if batch and (end - start > room or len(batch) == BATCH_PIECES):
                yield batch
                batch, room = [], BATCH_BYTES
            batch.append(Piece(piece.region, start, end - start))
            room -= end - start
    if batch:
        yield batch


def _size(pieces: list[Piece]) -> int:
    return sum([length for _, _, length in pieces])


def punch(batch: list[Piece]) -> Discarded:
    """Discard one batch, in any thread. A piece that fails is counted, the others are done."""
    result = Discarded()
    fds = _files(batch)
    started = time.perf_counter()
    before = _blocks(fds)
    if len(batch) < REMOVE_PIECES:
        _punch_each(batch, result)
    else:
        for region, pieces in groupby(batch, itemgetter(0)):
            _punch_region(region, list(pieces), result)
    result.freed = max(before - _blocks(fds), 0) * BLOCK
    result.seconds = time.perf_counter() - started
    return result


def _punch_region(region: MappedRegion, pieces: list[Piece], result: Discarded) -> None:
    done = _remove(region, pieces) if len(pieces) >= REMOVE_PIECES else 0
    _punch_each(pieces[done:], result)


def _punch_each(pieces: list[Piece], result: Discarded) -> None:
    for region, offset, length in pieces:
        try:
            syscalls.punch_hole(region.fd.fileno(), offset, length)
        except OSError as error:
            result.failed += length
            result.error = error


def _remove(region: MappedRegion, pieces: list[Piece]) -> int:
    """Punch a region's pieces through the region's mapping; return how many, from the first on.

    Only on tmpfs: elsewhere pieces are few, or what MADV_REMOVE does is not known.
    """
    if region.filesystem.kind != "tmpfs":
        return 0
    with region.borrowed() as (origin, mapped):
        for _, offset, length in pieces:
            # What the kernel would round up to whole pages, or find beside the mapping, has no
            # business here, whoever made the pieces.
            if (offset | length) % syscalls.PAGE_SIZE or not (
                mapped.start <= offset < offset + length <= mapped.stop
            ):
                return 0
        return syscalls.remove([(origin + offset, length) for _, offset, length in pieces])


def _files(batch: list[Piece]) -> list[int]:
    """A descriptor of each file that pieces lie in."""
    if len(batch) == 1:
        return [batch[0].region.fd.fileno()]
    regions = {region for region, _, _ in batch}
    return list({region.inode: region.fd.fileno() for region in regions}.values())


def _blocks(fds: list[int]) -> int:
    return sum([os.fstat(fd).st_blocks for fd in fds])


def fits_inline(batch: list[Piece]) -> bool:
    """Whether a batch is so small that it is best discarded in place."""
    return len(batch) <= INLINE_PIECES and _size(batch) <= INLINE_BYTES


DISCARDING: Final = trio.CapacityLimiter(min(8, max(1, (os.cpu_count() or 1) - 1)))
"""Who holds one of these may discard in a thread; the others wait in the order they came. More
at once would not free more: the kernel's work is bound by the processors, of which the event loop
needs one. No VM holds two at once (processors), so none can keep the others out."""


async def discard(batch: list[Piece]) -> Discarded:
    """Discard one batch, in a worker thread if it is a big one. Not cancelled half-way."""
    if fits_inline(batch):
        return punch(batch)
    with trio.CancelScope(shield=True):
        result = await trio.to_thread.run_sync(punch, batch)
    return result
