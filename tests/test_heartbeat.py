"""Knowing that this process was away, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from vhost_balloon.heartbeat import HOLD_LIMIT, TICK, Heartbeat

Beat = tuple[Heartbeat, trio.testing.MockClock]


@pytest.fixture
async def beat(nursery: trio.Nursery) -> AsyncIterator[Beat]:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    heartbeat = Heartbeat()
    nursery.start_soon(heartbeat.run)
    yield heartbeat, clock
    nursery.cancel_scope.cancel()


async def pass_time(clock: trio.testing.MockClock, seconds: float, step: float = TICK) -> None:
    """Let time pass in steps, as it does while the loop runs."""
    for _ in range(round(seconds / step)):
        clock.jump(step)
        await trio.testing.wait_all_tasks_blocked()


def test_a_tick_is_well_below_the_limit_of_half_a_second() -> None:
    assert HOLD_LIMIT == 0.5
    assert 2 * TICK < HOLD_LIMIT


async def test_while_the_loop_runs_nothing_is_late(mock_clock: object, beat: Beat) -> None:
    heartbeat, clock = beat
    assert not heartbeat.found_late(trio.current_time())
    for _ in range(30):
        await pass_time(clock, TICK)
        assert not heartbeat.found_late(trio.current_time())


@pytest.mark.parametrize(("gap", "late"), [(0.4, False), (0.49, False), (0.51, True), (3600, True)])
async def test_after_a_gap_what_waits_is_late_before_the_first_tick(
    mock_clock: object, beat: Beat, gap: float, late: bool
) -> None:
    heartbeat, clock = beat
    await pass_time(clock, 1)
    clock.jump(gap)
    assert heartbeat.found_late(trio.current_time()) is late


@pytest.mark.parametrize(("gap", "late"), [(0.4, False), (0.7, True)])
async def test_after_a_gap_what_waits_is_late_after_the_first_tick_too(
    mock_clock: object, beat: Beat, gap: float, late: bool
) -> None:
    heartbeat, clock = beat
    await pass_time(clock, 1)
    clock.jump(gap)
    await trio.testing.wait_all_tasks_blocked()  # the tick ran before the ring's task
    assert heartbeat.found_late(trio.current_time()) is late


async def test_what_comes_a_tick_after_a_gap_is_not_late(mock_clock: object, beat: Beat) -> None:
    heartbeat, clock = beat
    await pass_time(clock, 1)
    clock.jump(10)
    await trio.testing.wait_all_tasks_blocked()
    await pass_time(clock, 2 * TICK)
    assert not heartbeat.found_late(trio.current_time())
