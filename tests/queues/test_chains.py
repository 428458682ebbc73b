"""Taking chains from a ring: direct and indirect ones, and the broken ones that end it."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ring_driver import (
    INDIRECT,
    NEXT,
    SIZE,
    TABLE,
    WRITE,
    Descriptor,
    Driver,
    heads,
    pop,
)
from vhost_balloon.errors import RingError, RingErrorReason
from vhost_balloon.queues.virtqueue import Buffer, Chain


@pytest.fixture
def driver() -> Driver:
    return Driver()


def broken(driver: Driver) -> RingErrorReason:
    """The reason why the next chain cannot be popped."""
    with pytest.raises(RingError) as caught:
        pop(driver.queue(driver.index - 1))
    return caught.value.reason


def test_an_empty_ring_has_no_chains(driver: Driver) -> None:
    assert pop(driver.queue()) is None
    assert driver.used_elements() == []


def test_a_direct_chain_may_link_descriptors_in_any_order(driver: Driver) -> None:
    driver.describe((0x3000, 30, WRITE, 9), (0x2000, 20, NEXT | WRITE, 0), (0x1000, 10, NEXT, 1))
    queue = driver.queue()
    driver.offer(2)
    chain = pop(queue)
    expected = [
        Buffer(0x1000, 10, False),
        Buffer(0x2000, 20, True),
        Buffer(0x3000, 30, True),
    ]
    assert chain == Chain(2, expected)
    assert pop(queue) is None


def test_a_chain_may_be_as_long_as_the_queue(driver: Driver) -> None:
    driver.describe(*[(i, i, NEXT if i < 3 else 0, i + 1) for i in range(SIZE)])
    queue = driver.queue()
    driver.offer(0)
    chain = pop(queue)
    assert chain is not None
    assert [buffer.address for buffer in chain.buffers] == [0, 1, 2, 3]


def test_a_table_may_be_as_long_as_the_queue(driver: Driver) -> None:
    driver.describe((TABLE, SIZE * 16, INDIRECT, 0))
    driver.describe_indirectly(*[(i, i, NEXT if i < 3 else 0, i + 1) for i in range(SIZE)])
    queue = driver.queue()
    driver.offer(0)
    chain = pop(queue)
    assert chain is not None
    assert [buffer.address for buffer in chain.buffers] == [0, 1, 2, 3]


def test_an_entire_ring_may_be_available(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(3, 2, 1, 0)
    assert queue.pending() == SIZE
    assert heads([pop(queue) for _ in range(SIZE + 1)]) == [3, 2, 1, 0]


def test_an_indirect_table_is_read_once_and_followed(driver: Driver) -> None:
    driver.describe((TABLE, 3 * 16, INDIRECT, 0))
    driver.describe_indirectly((1, 10, NEXT, 2), (3, 30, WRITE, 0), (2, 20, NEXT, 1))
    queue = driver.queue()
    driver.offer(0)
    expected = [Buffer(1, 10, False), Buffer(2, 20, False), Buffer(3, 30, True)]
    assert pop(queue) == Chain(0, expected)
    assert driver.reads == [(TABLE, 48)]


def test_direct_descriptors_may_precede_an_indirect_one_whose_write_flag_is_ignored(
    driver: Driver,
) -> None:
    driver.describe((1, 10, NEXT, 2), (0, 0, 0, 0), (TABLE, 2 * 16, INDIRECT | WRITE, 0))
    driver.describe_indirectly((2, 20, NEXT, 1), (3, 30, 0, 0))
    queue = driver.queue()
    driver.offer(0)
    expected = [Buffer(1, 10, False), Buffer(2, 20, False), Buffer(3, 30, False)]
    assert pop(queue) == Chain(0, expected)


@pytest.mark.parametrize(
    ("first", "table", "reason"),
    [
        ((0, 0, NEXT, SIZE), [], RingErrorReason.NEXT),
        ((0, 0, NEXT, 0xFFFF), [], RingErrorReason.NEXT),
        ((0, 0, NEXT, 0), [], RingErrorReason.LOOP),
        ((TABLE, 16, INDIRECT | NEXT, 1), [], RingErrorReason.INDIRECT),
        ((TABLE, 0, INDIRECT, 0), [], RingErrorReason.INDIRECT),
        ((TABLE, 15, INDIRECT, 0), [], RingErrorReason.INDIRECT),
        ((TABLE, 17, INDIRECT, 0), [], RingErrorReason.INDIRECT),
        ((TABLE, (SIZE + 1) * 16, INDIRECT, 0), [], RingErrorReason.INDIRECT),
        ((TABLE, 0xFFFF_FFF0, INDIRECT, 0), [], RingErrorReason.INDIRECT),
        ((4096, 16, INDIRECT, 0), [], RingErrorReason.BUFFER),
        ((TABLE, 16, INDIRECT, 0), [(TABLE, 16, INDIRECT, 0)], RingErrorReason.INDIRECT),
        ((TABLE, 32, INDIRECT, 0), [(0, 0, NEXT, 2)], RingErrorReason.NEXT),
        ((TABLE, 32, INDIRECT, 0), [(0, 0, NEXT, 0)], RingErrorReason.LOOP),
        ((TABLE, 32, INDIRECT, 0), [(0, 0, NEXT, 1), (0, 0, NEXT, 0)], RingErrorReason.LOOP),
    ],
)
def test_a_broken_chain_breaks_the_ring(
    driver: Driver, first: Descriptor, table: list[Descriptor], reason: RingErrorReason
) -> None:
    driver.describe(first)
    driver.describe_indirectly(*table)
    driver.offer(0)
    assert broken(driver) is reason


def test_a_long_loop_is_detected_within_the_queue_size(driver: Driver) -> None:
    driver.describe(*[(0, 1, NEXT, (i + 1) % SIZE) for i in range(SIZE)])
    driver.offer(3)
    assert broken(driver) is RingErrorReason.LOOP


def test_the_entries_of_a_table_count_towards_the_length_of_its_chain(driver: Driver) -> None:
    driver.describe((0, 1, NEXT, 1), (0, 1, NEXT, 2), (TABLE, 3 * 16, INDIRECT, 0))
    driver.offer(0)
    assert broken(driver) is RingErrorReason.INDIRECT


@pytest.mark.parametrize("head", [SIZE, 0xFFFF])
def test_a_head_outside_the_queue_breaks_the_ring(driver: Driver, head: int) -> None:
    driver.offer(head)
    assert broken(driver) is RingErrorReason.HEAD


@pytest.mark.parametrize("start", [0, 65534])
@pytest.mark.parametrize("ahead", [SIZE + 1, 0x7FFF, 0xFFFF])
def test_an_available_index_that_jumps_breaks_the_ring(start: int, ahead: int) -> None:
    driver = Driver(index=start)
    queue = driver.queue()
    driver.write_index(driver.available, (start + ahead) & 0xFFFF)
    for take in (queue.pending, lambda: pop(queue)):
        with pytest.raises(RingError) as caught:
            take()
        assert caught.value.reason is RingErrorReason.AVAILABLE_INDEX
    assert queue.base == start


def test_a_base_ahead_of_the_available_index_breaks_the_ring(driver: Driver) -> None:
    with pytest.raises(RingError):
        pop(driver.queue(base=1))


@given(
    data=st.data(),
    size=st.sampled_from([1, 2, 4, 8]),
    base=st.integers(0, 0xFFFF),
)
def test_any_ring_memory_is_chains_or_a_ring_error(
    data: st.DataObject, size: int, base: int
) -> None:
    """Small values are more likely, so that many chains are well-formed."""
    word = st.one_of(st.integers(0, size), st.integers(0, 0xFFFF))
    descriptor = st.tuples(
        st.one_of(st.integers(0, 0x200), st.integers(0, (1 << 64) - 1)),
        st.one_of(st.sampled_from([16, 32, 48, 128]), st.integers(0, 0xFFFF_FFFF)),
        st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)),
        word,
    )
    driver = Driver(size, base)
    driver.describe(*data.draw(st.lists(descriptor, min_size=size, max_size=size)))
    driver.describe_indirectly(*data.draw(st.lists(descriptor, max_size=8)))
    driver.offer(*data.draw(st.lists(word, max_size=size)))
    if data.draw(st.booleans()):
        driver.write_index(driver.available, data.draw(st.integers(0, 0xFFFF)))
    queue, quick = driver.queue(base), driver.queue(base)
    taken = 0
    with contextlib.suppress(RingError):
        while True:
            plain = next(iter(quick.pop_plain(1)), None)
            chain = pop(queue)
            if chain is None:
                assert plain is None
                break
            _, _, flags, _ = struct.unpack_from("<QIHH", driver.descriptors, 16 * chain.head)
            assert plain == (None if flags & (NEXT | INDIRECT) else chain)
            if plain is None:
                quick._next_available = queue._next_available
                quick._outstanding = queue._outstanding
            taken += 1
            assert 0 <= chain.head < size
            assert 1 <= len(chain.buffers) <= size
    assert taken <= size
    assert len(driver.reads) <= taken + 1
    assert all(length <= 16 * size for _, length in driver.reads)
    assert queue.base == base
