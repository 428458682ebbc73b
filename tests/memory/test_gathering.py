"""Gathering huge pages from balloon pages: against a model, and the bounds of its memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vhost_balloon.figures.statistics import HugePages
from vhost_balloon.memory.gathering import MAX_BITS, MAX_PAGE, MAX_WHOLE, Gathering, Grid
from vhost_balloon.memory.ranges import merge_numbers

PAGE = 4096
SIZES = (4 << 10, 16 << 10, 64 << 10, 2 << 20)
HOST_PAGES = 4
START = 3 << 30  # the region's guest address


@dataclass
class Model:
    """The truth. given: the balloon pages that the guest has given; known: those since the last
    time that everything was forgotten."""

    grid: Grid
    given: set[int] = field(default_factory=set)
    known: set[int] = field(default_factory=set)

    def pages(self, host_page: int) -> range:
        return range(host_page // PAGE, (host_page + self.grid.size) // PAGE)

    def whole(self, pages: set[int]) -> set[int]:
        every = range(self.grid.start, self.grid.end, self.grid.size)
        return {page for page in every if pages.issuperset(self.pages(page))}

    def figures(self) -> HugePages:
        inside = {n for n in self.known if n * PAGE < self.grid.end}
        whole = self.whole(self.known)
        begun = {(n * PAGE - START) // self.grid.size for n in inside}
        waiting = len(inside) * PAGE - len(whole) * self.grid.size
        return HugePages(len(begun) - len(whole), len(whole), waiting)


class AnyInterleaving(RuleBasedStateMachine):
    """Inflates and deflates, discards in between, and forgetting everything at any time."""

    @initialize(size=st.sampled_from(SIZES), bounded=st.booleans())
    def begin(self, size: int, bounded: bool) -> None:
        self.model = Model(Grid(size, START, START + HOST_PAGES * size))
        self.loses = bounded
        self.gathering = Gathering(2 * max(size // PAGE, 512), 1) if bounded else Gathering()
        self.waiting: list[int] = []

    def numbers(self, host_page: int, first: int, length: int) -> set[int]:
        """Balloon pages in the region or across its end."""
        pages = self.model.grid.size // PAGE
        first = START // PAGE + host_page * pages + first % pages
        return set(range(first, first + length))

    place = st.tuples(
        st.integers(0, HOST_PAGES - 1),
        st.integers(0, 511),
        st.sampled_from([1, 2, 3, 4, 16, 100, 512, 700]),
    )

    @rule(place=place)
    def inflate(self, place: tuple[int, int, int]) -> None:
        numbers, whole_before = self.numbers(*place), self.model.whole(self.model.known)
        self.model.given |= numbers
        self.model.known |= numbers
        whole = self.model.whole(self.model.known)
        complete = self.gathering.add(self.model.grid, merge_numbers(list(numbers), 12))
        assert set(complete) <= whole, "a page is not entirely in the balloon"
        assert len(complete) == len(set(complete))
        assert self.loses or whole - whole_before <= set(complete)
        self.waiting += complete

    @rule(place=place)
    def deflate(self, place: tuple[int, int, int]) -> None:
        numbers = self.numbers(*place)
        self.gathering.remove(self.model.grid, merge_numbers(list(numbers), 12))
        self.model.given -= numbers
        self.model.known -= numbers

    @rule()
    def discard(self) -> None:
        going = {page for page in self.waiting if self.gathering.is_whole(page)}
        assert going <= self.model.whole(self.model.given), "the guest has a part of it back"
        assert self.loses or going == set(self.waiting) & self.model.whole(self.model.known)
        self.waiting = []

    @rule()
    def forget(self) -> None:
        self.gathering.clear()
        self.model.known.clear()

    @invariant()
    def statistics_match_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        found, expected = self.gathering.statistics(), self.model.figures()
        if self.loses:
            assert found.partial <= 2
            assert found.whole <= min(1, expected.whole)
            assert found.waiting <= len(self.model.known) * PAGE
        else:
            assert found == expected


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)

HUGE = 2 << 20
GRID = Grid(HUGE, 0, 1 << 40)


def test_the_last_balloon_page_completes_a_huge_page() -> None:
    gathering = Gathering()
    assert not gathering
    for number in range(511, 0, -1):
        assert gathering.add(GRID, [(number * PAGE, (number + 1) * PAGE)]) == []
    assert gathering.statistics() == (1, 0, HUGE - PAGE)
    assert gathering.add(GRID, [(0, PAGE)]) == [0]
    assert gathering.statistics() == (0, 1, 0)


def test_a_page_that_is_taken_back_and_given_again_completes_its_huge_page_again() -> None:
    gathering = Gathering()
    assert gathering.add(GRID, [(0, 2 * HUGE)]) == [0, HUGE]
    gathering.remove(GRID, [(HUGE + PAGE, HUGE + 2 * PAGE)])
    assert gathering.is_whole(0)
    assert not gathering.is_whole(HUGE), "a discard that waits must be called off"
    assert gathering.add(GRID, [(HUGE, HUGE + PAGE)]) == []
    assert gathering.add(GRID, [(HUGE + PAGE, HUGE + 2 * PAGE)]) == [HUGE]


def test_huge_pages_at_the_edges_of_a_region_are_ignored() -> None:
    grid, gathering = Grid(HUGE, HUGE, 2 * HUGE), Gathering()
    assert gathering.add(grid, [(0, HUGE), (2 * HUGE, 3 * HUGE)]) == []
    assert not gathering
    assert gathering.add(grid, [(0, 3 * HUGE)]) == [HUGE]
    assert [grid.clip(0, 3 * HUGE), grid.clip(0, PAGE), grid.clip(HUGE, HUGE + PAGE)] == [
        HUGE,
        0,
        PAGE,
    ]


@pytest.mark.parametrize("size", [16 << 10, HUGE, MAX_PAGE])
def test_partial_pages_are_bounded_and_the_oldest_are_forgotten(size: int) -> None:
    grid, gathering = Grid(size, 0, 1 << 50), Gathering()
    most = MAX_BITS // max(size // PAGE, 512)
    for number in range(most + 3):
        gathering.add(grid, [(number * size, number * size + PAGE)])
    assert gathering.statistics() == (most, 0, most * PAGE)
    assert gathering.forgotten() == 3 * PAGE
    assert gathering.forgotten() == 0
    assert gathering.add(grid, [(2 * size + PAGE, 3 * size)]) == [], "its first page is forgotten"
    assert gathering.add(grid, [(5 * size + PAGE, 6 * size)]) == [5 * size]


def test_whole_pages_are_bounded_and_do_not_count_as_forgotten() -> None:
    gathering = Gathering()
    gathering.add(GRID, [(0, (MAX_WHOLE + 2) * HUGE)])
    assert gathering.statistics() == (0, MAX_WHOLE, 0)
    assert gathering.forgotten() == 0


@given(st.sampled_from(SIZES), st.sets(st.integers(0, 1023), min_size=1))
def test_cleared_pages_count_as_forgotten(size: int, numbers: set[int]) -> None:
    gathering = Gathering()
    gathering.add(Grid(size, 0, 1 << 40), merge_numbers(list(numbers), 12))
    waiting = gathering.statistics().waiting
    gathering.clear()
    assert not gathering
    assert gathering.forgotten() == waiting
    assert gathering.statistics() == (0, 0, 0)
