"""The device side of a split ring, over plain byte arrays that the tests write as the driver."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio_ring import available_ring_size, descriptor_table_size, used_ring_size
from vhost_balloon.errors import RingError, RingErrorReason
from vhost_balloon.queues.virtqueue import Buffer, Chain, Virtqueue

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 4
TABLE = 0x100
"""Address of the indirect table in Driver.memory."""

Descriptor = tuple[int, int, int, int]


class Driver:
    """Writes descriptors and the available ring; reads the used ring; serves guest memory."""

    def __init__(self, size: int = SIZE, index: int = 0) -> None:
        self.size = size
        self.descriptors = bytearray(descriptor_table_size(size))
        self.available = bytearray(available_ring_size(size))
        self.used = bytearray(used_ring_size(size))
        self.memory = bytearray(4096)
        self.index = index
        self.reads: list[tuple[int, int]] = []
        self._write_index(self.available, index)
        self._write_index(self.used, index)

    def queue(self, base: int | None = None) -> Virtqueue:
        return Virtqueue(
            self.size,
            memoryview(self.descriptors),
            memoryview(self.available),
            memoryview(self.used),
            self.index if base is None else base,
            self.read,
        )

    def read(self, address: int, length: int) -> bytes:
        self.reads.append((address, length))
        if address + length > len(self.memory):
            raise RingError(RingErrorReason.BUFFER, "outside")
        return bytes(self.memory[address : address + length])

    def describe(self, *descriptors: Descriptor) -> None:
        """Write the first descriptors of the table."""
        for position, fields in enumerate(descriptors):
            struct.pack_into("<QIHH", self.descriptors, 16 * position, *fields)

    def describe_indirectly(self, *descriptors: Descriptor) -> None:
        for position, fields in enumerate(descriptors):
            struct.pack_into("<QIHH", self.memory, TABLE + 16 * position, *fields)

    def offer(self, *heads: int) -> None:
        for head in heads:
            struct.pack_into("<H", self.available, 4 + 2 * (self.index % self.size), head)
            self.index = (self.index + 1) & 0xFFFF
        self._write_index(self.available, self.index)

    @staticmethod
    def _write_index(ring: bytearray, index: int) -> None:
        struct.pack_into("<H", ring, 2, index)

    def used_elements(self, since: int = 0) -> list[tuple[int, int]]:
        """(head, written) of all published elements, starting at index since."""
        flags, index = struct.unpack_from("<HH", self.used)
        assert flags == 0
        count = (index - since) & 0xFFFF
        return [
            struct.unpack_from("<II", self.used, 4 + 8 * ((since + i) % self.size))
            for i in range(count)
        ]


def heads(chains: Iterable[Chain | None]) -> list[int]:
    return [chain.head for chain in chains if chain is not None]


@pytest.fixture
def driver() -> Driver:
    return Driver()


def broken(driver: Driver) -> RingErrorReason:
    """The reason why the next chain cannot be popped."""
    with pytest.raises(RingError) as caught:
        driver.queue(driver.index - 1).pop()
    return caught.value.reason


def test_an_empty_ring_has_no_chains(driver: Driver) -> None:
    assert driver.queue().pop() is None
    assert driver.used_elements() == []


def test_a_direct_chain_may_link_descriptors_in_any_order(driver: Driver) -> None:
    driver.describe((0x3000, 30, WRITE, 9), (0x2000, 20, NEXT | WRITE, 0), (0x1000, 10, NEXT, 1))
    queue = driver.queue()
    driver.offer(2)
    chain = queue.pop()
    expected = [
        Buffer(0x1000, 10, False),
        Buffer(0x2000, 20, True),
        Buffer(0x3000, 30, True),
    ]
    assert chain == Chain(2, expected)
    assert queue.pop() is None


def test_a_chain_may_be_as_long_as_the_queue(driver: Driver) -> None:
    driver.describe(*[(i, i, NEXT if i < 3 else 0, i + 1) for i in range(SIZE)])
    queue = driver.queue()
    driver.offer(0)
    chain = queue.pop()
    assert chain is not None
    assert [buffer.address for buffer in chain.buffers] == [0, 1, 2, 3]


def test_a_table_may_be_as_long_as_the_queue(driver: Driver) -> None:
    driver.describe((TABLE, SIZE * 16, INDIRECT, 0))
    driver.describe_indirectly(*[(i, i, NEXT if i < 3 else 0, i + 1) for i in range(SIZE)])
    queue = driver.queue()
    driver.offer(0)
    chain = queue.pop()
    assert chain is not None
    assert [buffer.address for buffer in chain.buffers] == [0, 1, 2, 3]


def test_an_entire_ring_may_be_available(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(3, 2, 1, 0)
    assert queue.pending() == SIZE
    assert heads([queue.pop() for _ in range(SIZE + 1)]) == [3, 2, 1, 0]


def test_an_indirect_table_is_read_once_and_followed(driver: Driver) -> None:
    driver.describe((TABLE, 3 * 16, INDIRECT, 0))
    driver.describe_indirectly((1, 10, NEXT, 2), (3, 30, WRITE, 0), (2, 20, NEXT, 1))
    queue = driver.queue()
    driver.offer(0)
    expected = [Buffer(1, 10, False), Buffer(2, 20, False), Buffer(3, 30, True)]
    assert queue.pop() == Chain(0, expected)
    assert driver.reads == [(TABLE, 48)]


def test_direct_descriptors_may_precede_an_indirect_one_whose_write_flag_is_ignored(
    driver: Driver,
) -> None:
    driver.describe((1, 10, NEXT, 2), (0, 0, 0, 0), (TABLE, 2 * 16, INDIRECT | WRITE, 0))
    driver.describe_indirectly((2, 20, NEXT, 1), (3, 30, 0, 0))
    queue = driver.queue()
    driver.offer(0)
    expected = [Buffer(1, 10, False), Buffer(2, 20, False), Buffer(3, 30, False)]
    assert queue.pop() == Chain(0, expected)


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
    driver._write_index(driver.available, (start + ahead) & 0xFFFF)
    for take in (queue.pending, queue.pop):
        with pytest.raises(RingError) as caught:
            take()
        assert caught.value.reason is RingErrorReason.AVAILABLE_INDEX
    assert queue.base == start


def test_a_base_ahead_of_the_available_index_breaks_the_ring(driver: Driver) -> None:
    with pytest.raises(RingError):
        driver.queue(base=1).pop()


def test_used_elements_appear_only_when_published(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(2, 0, 3)
    taken = heads([queue.pop(), queue.pop(), queue.pop()])
    assert taken == [2, 0, 3]
    for head in taken:
        queue.push(head)
    assert driver.used_elements() == []
    queue.publish()
    assert driver.used_elements() == [(2, 0), (0, 0), (3, 0)]


def test_the_written_length_is_in_the_used_element(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(1)
    queue.pop()
    queue.push(1, 4096)
    queue.publish()
    assert driver.used_elements() == [(1, 4096)]


def test_the_base_is_the_first_unused_chain(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(0, 1, 2)
    assert (queue.base, queue.pending()) == (0, 3)
    queue.pop()
    queue.pop()
    assert (queue.base, queue.pending()) == (0, 1)
    queue.push(0)
    assert queue.base == 1


def test_a_rewound_queue_pops_unused_chains_again(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(0, 1, 2)
    heads([queue.pop(), queue.pop(), queue.pop()])
    queue.push(0)
    queue.publish()
    queue.rewind()
    assert (queue.base, queue.pending()) == (1, 2)
    assert heads([queue.pop(), queue.pop(), queue.pop()]) == [1, 2]
    assert driver.used_elements() == [(0, 0)]


def test_a_broken_chain_does_not_count_as_popped(driver: Driver) -> None:
    queue = driver.queue()
    driver.offer(0, SIZE)
    queue.pop()
    with pytest.raises(RingError):
        queue.pop()
    queue.push(0)
    queue.publish()
    assert queue.base == 1
    assert driver.used_elements() == [(0, 0)]


def test_a_new_queue_starts_at_its_base_and_at_the_rings_used_index() -> None:
    driver = Driver(index=7)
    driver.offer(3, 1)
    queue = driver.queue(base=8)
    assert heads([queue.pop(), queue.pop()]) == [1]
    queue.push(1)
    queue.publish()
    assert driver.used_elements(since=7) == [(1, 0)]


def test_indexes_wrap_at_65536() -> None:
    driver = Driver(index=65534)
    queue = driver.queue()
    for round_start in (65534, 1):
        driver.offer(0, 1, 2)
        assert heads([queue.pop(), queue.pop(), queue.pop()]) == [0, 1, 2]
        assert queue.base == round_start
        for head in range(3):
            queue.push(head)
        queue.publish()
        assert driver.used_elements(since=round_start) == [(0, 0), (1, 0), (2, 0)]
    assert queue.base == 4


def test_a_released_queue_no_longer_holds_the_memory(driver: Driver) -> None:
    queue = driver.queue()
    with pytest.raises(BufferError):
        driver.used.append(0)
    queue.release()
    for part in (driver.descriptors, driver.available, driver.used):
        part.append(0)


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
        driver._write_index(driver.available, data.draw(st.integers(0, 0xFFFF)))
    queue, quick = driver.queue(base), driver.queue(base)
    taken = 0
    with contextlib.suppress(RingError):
        while True:
            plain = quick.pop_plain()
            chain = queue.pop()
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


def test_a_recovered_queue_continues_from_the_published_index() -> None:
    """Neither from the base that the ring was started with, nor from an unpublished element."""
    driver = Driver(index=7)
    driver.offer(3, 1, 2)
    before = driver.queue(base=8)  # the front end used one chain itself
    assert before.lead == 1
    heads([before.pop(), before.pop()])
    before.push(1)
    before.publish()
    assert (before.lead, before.base) == (1, 9)
    before.push(2)  # the process dies before it publishes
    after = driver.queue(base=0)
    after.recover(1)
    assert (after.base, after.lead) == (9, 1)
    assert heads([after.pop()]) == [2]


def test_a_lead_wraps() -> None:
    driver = Driver(index=0xFFFF)
    driver.offer(0, 1)
    queue = driver.queue(base=0)
    assert queue.lead == 1
    after = driver.queue(base=5)
    after.recover(1)
    assert (after.base, heads([after.pop()])) == (0, [1])
