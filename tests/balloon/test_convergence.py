"""Whether a guest is moving to its target, is there, is stuck, or is out of memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio_balloon import StatTag
from vhost_balloon.balloon.convergence import EXHAUSTED_SHARE, STUCK_AFTER, Convergence
from vhost_balloon.balloon.guest_stats import GuestStats
from vhost_balloon.figures.statistics import VmState

MEMORY = 1 << 30
NOTHING_KNOWN = GuestStats()


def available(size: float) -> GuestStats:
    return GuestStats({StatTag.AVAIL: int(size)})


SCARCE = available(MEMORY * EXHAUSTED_SHARE - 1)
PLENTY = available(MEMORY * EXHAUSTED_SHARE + 1)


class Guest:
    """An observed guest. Times are in seconds, figures in balloon pages."""

    def __init__(self) -> None:
        self.convergence = Convergence()

    def at(self, now: float, target: int, held: int) -> None:
        self.convergence.observe(target, held, now)

    def state(self, now: float, stats: GuestStats = NOTHING_KNOWN) -> VmState:
        return self.convergence.state(now, MEMORY, stats)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_without_a_target_it_is_done(guest: Guest) -> None:
    assert guest.state(0) is VmState.DONE
    assert guest.state(1000, SCARCE) is VmState.DONE


@pytest.mark.parametrize("held", [[0, 30, 60, 100], [200, 150, 120, 100]])
def test_moving_to_the_target_and_there(guest: Guest, held: list[int]) -> None:
    for now, pages in enumerate(held[:-1]):
        guest.at(now * STUCK_AFTER * 0.9, 100, pages)
        assert guest.state(now * STUCK_AFTER * 0.9) is VmState.MOVING
    guest.at(100, 100, held[-1])
    assert guest.state(100) is VmState.DONE
    assert guest.state(10_000, SCARCE) is VmState.DONE


def test_stuck_after_a_while_without_progress(guest: Guest) -> None:
    guest.at(10, 100, 0)
    assert guest.state(10 + STUCK_AFTER - 0.01) is VmState.MOVING
    assert guest.state(10 + STUCK_AFTER) is VmState.STUCK
    guest.at(100, 100, 1)  # progress
    assert guest.state(100 + STUCK_AFTER - 0.01) is VmState.MOVING
    assert guest.state(100 + STUCK_AFTER) is VmState.STUCK


def test_the_same_figures_again_are_no_progress(guest: Guest) -> None:
    guest.at(0, 100, 50)
    for now in range(1, 6):
        guest.at(now, 100, 50)
    assert guest.state(STUCK_AFTER) is VmState.STUCK


def test_a_new_target_restarts_the_clock(guest: Guest) -> None:
    guest.at(0, 100, 50)
    assert guest.state(60) is VmState.STUCK
    guest.at(60, 200, 50)
    assert guest.state(60) is VmState.MOVING
    assert guest.state(60 + STUCK_AFTER) is VmState.STUCK
    guest.at(70, 50, 50)
    assert guest.state(70) is VmState.DONE


def test_a_guest_without_progress_and_without_available_memory_has_no_more(guest: Guest) -> None:
    guest.at(0, 100, 50)
    assert guest.state(STUCK_AFTER - 0.01, SCARCE) is VmState.MOVING
    assert guest.state(STUCK_AFTER, SCARCE) is VmState.OUT_OF_MEMORY
    assert guest.state(STUCK_AFTER, PLENTY) is VmState.STUCK
    assert guest.state(STUCK_AFTER, GuestStats({StatTag.MEMFREE: 0})) is VmState.STUCK


def test_a_guest_that_does_not_deflate_is_stuck_however_little_is_available(guest: Guest) -> None:
    guest.at(0, 10, 50)
    assert guest.state(STUCK_AFTER, SCARCE) is VmState.STUCK


def test_a_guest_that_takes_pages_back_below_its_target_is_out_of_memory(guest: Guest) -> None:
    guest.at(0, 100, 80)
    guest.at(1, 100, 60)
    assert guest.state(1) is VmState.OUT_OF_MEMORY
    guest.at(2, 100, 90)  # trying again does not clear the state
    assert guest.state(2) is VmState.OUT_OF_MEMORY
    guest.at(3, 100, 100)
    assert guest.state(3) is VmState.DONE


def test_pages_that_leave_a_balloon_at_its_target_count_as_taken_back(guest: Guest) -> None:
    guest.at(0, 100, 100)
    guest.at(1, 100, 99)
    assert guest.state(1, PLENTY) is VmState.OUT_OF_MEMORY


def test_a_new_target_forgets_pages_taken_back(guest: Guest) -> None:
    guest.at(0, 100, 80)
    guest.at(1, 100, 60)
    guest.at(2, 70, 60)
    assert guest.state(2) is VmState.MOVING


def test_a_balloon_that_shrinks_to_a_smaller_target_is_moving(guest: Guest) -> None:
    guest.at(0, 100, 100)
    guest.at(1, 50, 100)
    guest.at(2, 50, 70)
    assert guest.state(2) is VmState.MOVING


def test_a_new_driver_starts_with_an_empty_balloon(guest: Guest) -> None:
    guest.at(0, 100, 80)
    guest.at(1, 100, 60)
    guest.convergence.new_driver(100)
    assert guest.state(100) is VmState.MOVING
    guest.at(101, 100, 1)
    assert guest.state(101) is VmState.MOVING
    assert guest.state(101 + STUCK_AFTER) is VmState.STUCK


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 9), st.integers(0, 9)), min_size=1),
    st.sampled_from([NOTHING_KNOWN, SCARCE, PLENTY]),
)
def test_the_state_is_done_only_at_the_target(
    steps: list[tuple[float, int, int]], stats: GuestStats
) -> None:
    guest, now = Guest(), 0.0
    for passed, target, held in steps:
        now += passed
        guest.at(now, target, held)
        assert (guest.state(now, stats) is VmState.DONE) == (target == held)
        assert guest.state(now + 2 * STUCK_AFTER, stats) is not VmState.MOVING
