"""Walks everything a ring offers and checks each step against its allowed results."""

from __future__ import annotations

import os
from contextlib import suppress

from protocol.virtio_balloon import BALLOON_PAGE_SIZE
from tests.support.helpers import Piece, pieces
from tests.support.ring_driver import pop
from vhost_balloon.balloon.guest_stats import parse_stats
from vhost_balloon.errors import RingError
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.ranges import merge
from vhost_balloon.memory.resolve import resolve
from vhost_balloon.queues.decode import (
    READ_PFNS,
    SLICE_BUFFERS,
    SLICE_NUMBERS,
    Slice,
    pages,
    pages_size,
    reported,
)
from vhost_balloon.queues.ring import BoundRing, bind
from vhost_balloon.queues.virtqueue import Chain
from vhost_balloon.session.effects import RingSetup

_POLICY = DiscardPolicy(DiscardMode.ALWAYS)
_MAX_NAMED = 1 << 17
"""Page numbers examined in one walk; a chain may name queue size x 2^30."""


def check_walk(setup: RingSetup, memory: GuestMemory) -> None:
    """Raise AssertionError on a bad step, or FrontEndError if the ring cannot be started."""
    bound = bind(setup, setup.base, memory)
    try:
        for chain in _chains(bound, setup.size):
            for named in _named(chain, memory):
                _check_named(named, bound, memory)
    finally:
        bound.virtqueue.release()


def _chains(bound: BoundRing, size: int) -> list[Chain]:
    chains: list[Chain] = []
    with suppress(RingError):
        while (chain := pop(bound.virtqueue)) is not None:
            chains.append(chain)
            assert len(chains) <= size, "more chains than the queue holds"
            assert 0 <= chain.head < size
            assert 1 <= len(chain.buffers) <= size
    return chains


def _named(chain: Chain, memory: GuestMemory) -> list[Slice]:
    """Decode the chain as a report and as page numbers; parse it as statistics too."""
    requests = [chain.buffers]
    everything = list(reported(requests))
    with suppress(RingError):
        if pages_size(requests) <= _MAX_NAMED * BALLOON_PAGE_SIZE:
            slices = list(pages(requests, memory.read))
            most = SLICE_NUMBERS + READ_PFNS + SLICE_BUFFERS
            assert all(len(named.ranges) <= most for named in slices)
            assert sum(n.size for n in slices) == pages_size(requests)
            everything += slices
        for address, length, _ in chain.buffers:
            values, tail = parse_stats(memory.read(address, min(length, 4096)))
            assert all(0 <= value < 1 << 64 for value in values.values())
            assert 0 <= tail < 10
    return everything


def _check_named(named: Slice, bound: BoundRing, memory: GuestMemory) -> None:
    protected = merge(bound.ranges)
    parts, refused_bytes, inside = resolve(memory, named.ranges, protected, _POLICY)
    assert inside == memory.inside(named.ranges)
    discarded = sum(part.size for part in parts)
    refused = sum(refused_bytes.values())
    assert discarded + refused == named.ranges.total(), "a byte was lost or counted twice"
    for piece in pieces(parts):
        _check_piece(piece, named, bound)


def _check_piece(piece: Piece, named: Slice, bound: BoundRing) -> None:
    """Check that a piece is whole named pages, inside its region and outside every ring."""
    region, offset, length = piece
    page = region.page_size
    assert length > 0
    assert offset % page == length % page == 0
    first = offset - region.region.mmap_offset
    assert 0 <= first <= region.region.size - length
    assert offset + length <= os.fstat(region.fd.fileno()).st_size
    start = region.guest_start + first
    end = start + length
    assert any(low <= start and end <= high for low, high in named.ranges)
    for low, high in bound.ranges:
        assert end <= low or high <= start, "the page contains part of a ring"
