"""Decoding buffers into the ranges that they name."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_balloon.errors import RingError, RingErrorReason
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.memory.ranges import Range, merge
from vhost_balloon.queues.decode import (
    READ_PFNS,
    SLICE_BUFFERS,
    SLICE_NUMBERS,
    Slice,
    one_run,
    pages,
    pages_size,
    reported,
    reported_size,
)
from vhost_balloon.queues.virtqueue import Buffer

PAGE = 4096


class Memory:
    """Guest memory from address 0 that records the length of each read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[int] = []

    def read(self, address: int, length: int) -> bytes:
        self.reads.append(length)
        if address + length > len(self.data):
            raise RingError(RingErrorReason.BUFFER, "outside")
        return self.data[address : address + length]


def pfns(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def decode(memory: Memory, *buffers: Buffer) -> list[Slice]:
    """The slices of one request."""
    return list(pages([buffers], memory.read))


def test_adjacent_pages_in_any_order_become_one_range() -> None:
    memory = Memory(pfns(7, 6, 5, 100))
    (named,) = decode(memory, Buffer(0, 16, False))
    assert list(named.ranges) == [(5 * PAGE, 8 * PAGE), (100 * PAGE, 101 * PAGE)]
    assert (named.size, list(named.refusals)) == (4 * PAGE, [])


def test_small_buffers_share_a_slice_and_repetitions_are_counted_and_merged() -> None:
    memory = Memory(pfns(1, 2, 1, 2))
    (named,) = decode(memory, Buffer(0, 8, False), Buffer(8, 8, False))
    assert list(named.ranges) == [(PAGE, 3 * PAGE)]
    assert named.size == 4 * PAGE


def test_the_highest_page_number_names_the_last_page_below_16_tib() -> None:
    (named,) = decode(Memory(pfns(0xFFFF_FFFF)), Buffer(0, 4, False))
    assert list(named.ranges) == [((1 << 44) - PAGE, 1 << 44)]


@pytest.mark.parametrize(
    ("buffer", "reason", "size", "ranges"),
    [
        (Buffer(0, 8, True), Refusal.DIRECTION, 8, []),
        (Buffer(0, 0, False), Refusal.EMPTY, 0, []),
        (Buffer(0, 3, False), Refusal.ODD_TAIL, 3, []),
        (Buffer(0, 7, False), Refusal.ODD_TAIL, 3, [(PAGE, 2 * PAGE)]),
    ],
)
def test_wrong_content_is_refused_and_the_rest_is_decoded(
    buffer: Buffer, reason: str, size: int, ranges: list[tuple[int, int]]
) -> None:
    (named,) = decode(Memory(pfns(1, 2)), buffer)
    assert (list(named.ranges), named.refusals) == (ranges, [(reason, size)])


@pytest.mark.parametrize("address", [8, 1 << 40, (1 << 64) - 4])
def test_a_buffer_outside_memory_breaks_the_ring(address: int) -> None:
    with pytest.raises(RingError):
        decode(Memory(bytes(8)), Buffer(address, 8, False))


def test_a_large_buffer_comes_in_slices_of_bounded_size() -> None:
    count = 2 * SLICE_NUMBERS + 5
    memory = Memory(pfns(*[number ^ 1 for number in range(count + 1)][:count]))
    slices = decode(memory, Buffer(0, 4 * count, False))
    assert [named.size // PAGE for named in slices if named.size] == [SLICE_NUMBERS] * 2 + [5]
    assert merge(r for named in slices for r in named.ranges) == [
        (0, (count - 1) * PAGE),
        (count * PAGE, (count + 1) * PAGE),
    ]
    assert max(memory.reads) <= 4 * READ_PFNS


def test_a_buffer_of_4_gib_is_read_slice_by_slice() -> None:
    memory = Memory(pfns(*[number ^ 1 for number in range(SLICE_NUMBERS)]))
    slices = pages([[Buffer(0, 0xFFFF_FFFC, False)]], memory.read)
    named = next(step for step in slices if step.ranges)
    assert list(named.ranges) == [(0, SLICE_NUMBERS * PAGE)]
    assert sum(memory.reads) == 4 * SLICE_NUMBERS


NUMBERS = st.one_of(
    st.integers(0, 40), st.integers(0, 0xFFFF_FFFF), st.integers(0xFFFF_FF00, 0xFFFF_FFFF)
)


@given(
    st.lists(NUMBERS, min_size=1, max_size=4)
    | st.builds(lambda at, n: [*range(at, at + n)], st.integers(0, 0xFFFF_FFF0), st.integers(1, 9))
    | st.builds(lambda at, n: [*range(at + n, at, -1)], st.integers(0, 90), st.integers(1, 9)),
    st.none() | st.tuples(st.integers(0, 8), NUMBERS),
)
def test_one_run(numbers: list[int], change: tuple[int, int] | None) -> None:
    if change is not None:
        numbers[change[0] % len(numbers)] = change[1]
    steps = {after - before for before, after in pairwise(numbers)}
    found = one_run(pfns(*numbers))
    assert (found is not None) is (steps in (set(), {1}, {-1}))
    if found is not None:
        assert found == (min(numbers), max(numbers) + 1)


@pytest.mark.parametrize("wrap", [[0xFFFF_FFFF, 0, 1], [1, 0, 0xFFFF_FFFF], [0, 0xFFFF_FFFF]])
def test_a_run_does_not_wrap(wrap: list[int]) -> None:
    assert one_run(pfns(*wrap)) is None


@pytest.mark.parametrize("numbers", [range(9, 1033), range(1032, 8, -1)], ids=["up", "down"])
def test_a_run_is_one_range_however_many_buffers_name_it(numbers: range) -> None:
    memory = Memory(pfns(*numbers))
    named = decode(memory, *[Buffer(at, 1024, False) for at in range(0, 4096, 1024)])
    assert [list(step.ranges) for step in named if step.ranges] == [[(9 * PAGE, 1033 * PAGE)]]
    assert sum(step.size for step in named) == 1024 * PAGE


@pytest.mark.parametrize("wrong", [0, 1, 500, 600, 1022, 1023])
@pytest.mark.parametrize("number", [0, None, 5000])
def test_a_run_with_one_wrong_number(wrong: int, number: int | None) -> None:
    numbers = [*range(9, 1033)]
    numbers[wrong] = numbers[wrong - 1] if number is None else number
    named = decode(Memory(pfns(*numbers)), Buffer(0, 4096, False))
    ranges = [item for step in named for item in step.ranges]
    assert {page for start, end in ranges for page in range(start, end, PAGE)} == {
        each * PAGE for each in numbers
    }
    # A run and the other numbers may end up in different slices, which are not merged.
    repeated = (0 if number == 0 or wrong else 1) * PAGE
    assert sum(end - start for start, end in ranges) <= len(set(numbers)) * PAGE + repeated
    assert sum(step.size for step in named) == 1024 * PAGE


# Framing

CUTS = st.lists(st.integers(0, 4), max_size=60) | st.lists(st.integers(0, 5000), max_size=60)
"""Lengths of descriptors; the last one takes the rest."""


def framed(start: int, length: int, cuts: Sequence[int]) -> list[Buffer]:
    """A chain of descriptors over [start, start + length)."""
    buffers, end = [], start + length
    for cut in cuts:
        buffers.append(Buffer(start, min(cut, end - start), False))
        start += buffers[-1].length
    return [*buffers, Buffer(start, end - start, False)]


def named_by(slices: Iterable[Slice]) -> tuple[list[Range], int, Counter[tuple[str, int]]]:
    """The ranges of all slices, the bytes named, and the refusals."""
    slices = list(slices)
    return (
        merge(each for named in slices for each in named.ranges),
        sum(named.size for named in slices),
        Counter(refusal for named in slices for refusal in named.refusals),
    )


def plainly(content: bytes) -> tuple[list[Range], int, Counter[tuple[str, int]]]:
    """What a request of these bytes names, without regard to time."""
    whole = len(content) // 4
    numbers = struct.unpack(f"<{whole}I", content[: 4 * whole])
    refusals = Counter([(Refusal.ODD_TAIL, len(content) % 4)] if len(content) % 4 else [])
    return (
        merge((number * PAGE, (number + 1) * PAGE) for number in numbers),
        whole * PAGE,
        refusals if content else Counter([(Refusal.EMPTY, 0)]),
    )


ARRAYS = st.one_of(
    st.binary(max_size=40),
    st.lists(NUMBERS, max_size=40).map(lambda numbers: pfns(*numbers)),
    st.builds(lambda at, n: pfns(*range(at, at + n)), st.integers(0, 9), st.integers(0, 3000)),
    st.builds(lambda n, step: pfns(*range(0, n * step, step)), st.integers(0, 3000), st.just(3)),
)


@settings(deadline=None)
@given(st.lists(st.tuples(ARRAYS, st.binary(max_size=3), CUTS), min_size=1, max_size=4))
def test_a_pfn_array_may_be_cut_anywhere(requests: list[tuple[bytes, bytes, list[int]]]) -> None:
    """But a page number never spans two chains."""
    memory, chains = Memory(b""), []
    ranges: list[Range] = []
    size, refusals = 0, Counter[tuple[str, int]]()
    for array, tail, cuts in requests:
        content = array + tail
        chains.append(framed(len(memory.data), len(content), cuts))
        memory.data += content
        some = plainly(content)
        ranges, size, refusals = [*ranges, *some[0]], size + some[1], refusals + some[2]
    assert named_by(pages(chains, memory.read)) == (merge(ranges), size, refusals)
    assert pages_size(chains) == size
    assert max(memory.reads, default=0) <= 4 * READ_PFNS


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.lists(st.integers(0, 120), max_size=3))
def test_writable_descriptors_are_no_part_of_the_array(numbers: list[int], at: list[int]) -> None:
    content = pfns(*numbers)
    chain = framed(0, len(content), [1] * (len(content) - 1))
    for position in at:
        chain.insert(position, Buffer(0, 8, True))
    ranges, size, _ = plainly(content)
    assert named_by(decode(Memory(content), *chain)) == (
        ranges, size, Counter({(Refusal.DIRECTION, 8): len(at)} if at else {})
    )  # fmt: skip
    assert pages_size([chain]) == size


def test_a_request_of_writable_descriptors_is_refused_for_that_alone() -> None:
    (named,) = decode(Memory(pfns(1)), Buffer(0, 0, False), Buffer(0, 4, True), Buffer(0, 0, True))
    assert named.refusals == [(Refusal.DIRECTION, 4), (Refusal.DIRECTION, 0)]


def test_a_request_in_single_bytes_comes_in_slices_of_bounded_size() -> None:
    numbers = [number ^ 1 for number in range(2048)]
    memory, named, most = Memory(pfns(*numbers)), set[int](), 0
    for step in pages([framed(0, 4 * len(numbers), [1] * 9000)], memory.read):
        assert len(memory.reads) <= SLICE_BUFFERS + 1
        memory.reads.clear()
        most = max(most, step.size)
        named.update(number for start, end in step.ranges for number in range(start, end, PAGE))
    assert named == {number * PAGE for number in numbers}
    assert most == READ_PFNS * PAGE


# Reports


def test_a_report_names_its_own_buffers() -> None:
    (named,) = reported(
        [[Buffer(8 * PAGE, PAGE, True), Buffer(4 * PAGE, 4 * PAGE, True)], [Buffer(0, PAGE, True)]]
    )
    assert list(named.ranges) == [(0, PAGE), (4 * PAGE, 9 * PAGE)]
    assert (named.size, named.refusals) == (6 * PAGE, [])


def test_read_only_and_empty_buffers_of_a_report_are_refused_and_the_rest_is_decoded() -> None:
    (named,) = reported([[Buffer(0, PAGE, False), Buffer(PAGE, 0, True), Buffer(PAGE, PAGE, True)]])
    assert list(named.ranges) == [(PAGE, 2 * PAGE)]
    assert named.refusals == [(Refusal.DIRECTION, PAGE), (Refusal.EMPTY, 0)]


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40), st.booleans())))
def test_any_report(entries: list[tuple[int, int, bool]]) -> None:
    buffers = [Buffer(*entry) for entry in entries]
    steps = list(reported([buffers]))
    taken = [buffer for buffer in buffers if buffer.writable and buffer.length]
    assert {a for named in steps for r in named.ranges for a in range(*r)} == {
        a for b in taken for a in range(b.address, b.address + b.length)
    }
    assert sum(named.size for named in steps) == reported_size([buffers])
    refused: Counter[str] = Counter()
    refusals = [refusal for named in steps for refusal in named.refusals]
    for reason, size in refusals:
        refused[reason] += size
    assert refused[Refusal.DIRECTION] == sum(b.length for b in buffers if not b.writable)
    assert len(refusals) == len(buffers) - len(taken)
