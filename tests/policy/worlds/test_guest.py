"""The simulated guest."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.worlds import demand
from tests.policy.worlds.guest import Guest
from tests.policy.worlds.kinds import ANY_KIND, of_size
from tests.policy.worlds.spec import NEVER, GuestSpec

GIB = 1024.0


def spec(trace: demand.Trace | None = None) -> GuestSpec:
    """4 GiB, of which 1 GiB is used and 2 GiB are cache; no swap."""
    return GuestSpec("vm", "idle", 4 * GIB, trace or demand.constant(GIB), 2 * GIB, 2 * GIB, 0.0)


def live(guest: Guest, seconds: range) -> None:
    for second in seconds:
        guest.step(second)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(ANY_KIND),
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), max_size=40),
)
def test_no_memory_is_lost_or_made_whatever_is_ordered(
    seed: int, kind: str, orders: list[tuple[int, float]]
) -> None:
    size = 4 * GIB
    guest = Guest(replace(of_size(Random(seed), "vm", size, (kind,)), cache=0.2 * GIB))
    second = 0
    for wait, share in orders:
        guest.order(second, share * size)
        for now in range(second, second + wait):
            guest.step(now)
            used = guest.anonymous + guest.swapped
            assert used + guest.stall == pytest.approx(guest.spec.demand[now])
            assert 0 <= guest.actual <= size + 1e-6
            assert min(guest.anonymous, guest.cache, guest.unreported) >= 0
            assert 0 <= guest.swapped <= guest.spec.swap + 1e-6
            assert guest.unreported <= guest.free + 1e-6
            assert guest.resident <= guest.actual + 1e-6
        second += wait


def test_an_order_takes_its_time_and_later_ones_only_replace_it() -> None:
    guest = Guest(replace(spec(), delay=2, cache=0.0, inflate=512.0))
    guest.order(0, 1.0 * GIB)
    live(guest, range(1, 2))
    guest.order(1, 3 * GIB)
    assert guest.actual == 4 * GIB
    live(guest, range(2, 4))
    assert guest.actual == 3 * GIB
    guest.order(3, 4 * GIB)
    live(guest, range(4, 6))
    assert guest.actual == 4 * GIB
    assert guest.moved == 2 * GIB


def test_the_balloon_takes_free_memory_then_cache_and_no_anonymous_memory_without_swap() -> None:
    guest = Guest(spec())
    guest.order(0, 2 * GIB)
    live(guest, range(1, 10))
    assert guest.actual == 2 * GIB
    assert guest.cache == pytest.approx(GIB - guest.watermark)
    guest.order(10, 0.0)
    live(guest, range(11, 20))
    assert guest.anonymous == GIB
    assert guest.actual == pytest.approx(GIB + guest.least_cache + guest.watermark)


def test_the_balloon_swaps_what_is_used_if_there_is_swap() -> None:
    guest = Guest(replace(spec(), swap=2 * GIB))
    guest.order(0, 0.0)
    live(guest, range(1, 40))
    assert guest.swapped > 0
    assert guest.anonymous + guest.swapped == pytest.approx(GIB)


def test_a_guest_that_cannot_shrink_stays_where_it_is() -> None:
    guest = Guest(replace(spec(), least=0.8 * 4 * GIB))
    guest.order(0, GIB)
    live(guest, range(1, 40))
    assert guest.actual == pytest.approx(0.8 * 4 * GIB)


def test_freed_memory_leaves_the_host_by_half_each_second() -> None:
    guest = Guest(replace(spec([2 * GIB] + [GIB] * 20), cache=0.0, kept=0.0))
    guest.step(0)
    occupied = []
    for second in range(1, 5):
        guest.step(second)
        occupied.append(guest.resident - GIB)
    assert occupied == pytest.approx([512, 256, 128, 64])


def test_without_reporting_freed_memory_stays_on_the_host() -> None:
    trace = [2 * GIB] + [GIB] * 20
    guest = Guest(replace(spec(trace), cache=0.0, kept=0.0, reports=False))
    live(guest, range(20))
    assert guest.resident == pytest.approx(2 * GIB)


def test_a_starving_guest_takes_back_sends_nothing_and_its_balloon_has_it_again() -> None:
    guest = Guest(replace(spec([GIB] * 20 + [3 * GIB] * 20), phase=3))
    guest.order(0, 1.5 * GIB)
    live(guest, range(20))
    assert guest.sample is not None
    before = guest.sample.taken
    live(guest, range(20, 40))
    assert guest.stall > GIB
    assert guest.starved
    assert guest.is_troubled
    assert guest.took_back == 16
    assert guest.actual == 1.5 * GIB
    assert guest.sample.taken == before == 13


def test_a_starving_guest_without_deflate_on_oom_takes_nothing_back() -> None:
    guest = Guest(replace(spec([GIB] * 20 + [3 * GIB] * 20), deflates_on_oom=False))
    guest.order(0, 1.5 * GIB)
    live(guest, range(21))
    assert guest.starved
    assert guest.took_back == 0


def test_a_guest_swaps_in_what_it_uses_and_thrashes_without_room() -> None:
    guest = Guest(replace(spec([GIB] * 20 + [2.5 * GIB] * 60), swap=2 * GIB))
    guest.order(0, 1.5 * GIB)
    live(guest, range(60))
    assert guest.stall == 0
    assert guest.swapped_in == 100
    assert guest.is_troubled
    guest.order(60, 4 * GIB)
    live(guest, range(61, 80))
    assert guest.anonymous > 0.7 * 2.5 * GIB - 1
    assert not guest.is_troubled


@pytest.mark.parametrize("maps", [False, True])
def test_hot_cache_that_was_taken_is_read_again(maps: bool) -> None:
    guest = Guest(replace(spec(), hot=GIB, reread=40.0, maps=maps))
    guest.order(0, 1.2 * GIB)
    live(guest, range(1, 20))
    assert guest.cache < 0.2 * GIB
    assert guest.reread == pytest.approx(40 * (1 - guest.cache / GIB), abs=2)
    assert guest.is_troubled
    assert (guest.faults > 0) == maps


def test_cache_fills_to_its_limit() -> None:
    guest = Guest(replace(spec(), cache=0.0, cache_limit=100.0, fill=30.0))
    live(guest, range(10))
    assert guest.cache == pytest.approx(100)


def test_samples_come_as_asked_and_stop() -> None:
    guest = Guest(replace(spec(), phase=4, silent=30))
    taken = []
    for second in range(40):
        guest.step(second)
        if guest.sample is not None and guest.sample.taken == second:
            taken.append(second)
        guest.ask(second, asked=second >= 15)
    assert taken == [4, 14, 16, 18, 20, 22, 24, 26, 28]
    assert guest.next_sample == NEVER


def test_a_liar_says_what_it_likes() -> None:
    guest = Guest(replace(spec(), claims=123.0))
    guest.step(0)
    assert guest.sample is not None
    assert guest.sample.available == 123
    assert guest.available == pytest.approx(GIB - guest.watermark + 2 * GIB - guest.watermark)


def test_a_pinned_guest_occupies_all_of_its_memory() -> None:
    guest = Guest(replace(spec(), pinned=True))
    guest.order(0, 2 * GIB)
    live(guest, range(10))
    assert guest.actual == 2 * GIB
    assert guest.resident == 4 * GIB
