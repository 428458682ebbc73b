"""A peer that sends its next request immediately is polled for a moment, and no other peer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from vhost_balloon.pace import polling
from vhost_balloon.pace.polling import POLL_SECONDS, SOON, Polling


class Clock:
    """Replaces the real clock. Some five looks fit into a poll."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def __call__(self) -> float:
        return self.now

    def request_at_look(self, number: int) -> Callable[[], bool]:
        def has_request() -> bool:
            self.looks += 1
            self.now += POLL_SECONDS / 4.5
            return self.looks == number

        self.looks = 0
        return has_request


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(polling, "perf_counter", clock)
    monkeypatch.setattr(polling, "_ALONE", False)
    return clock


def answered_and_woken(clock: Clock, after: float, looks: int = 1) -> Polling:
    peer = Polling(looks)
    peer.answered()
    clock.now += after
    peer.woken()
    peer.answered()
    return peer


async def test_a_peer_with_a_prompt_request_is_polled_until_the_next(clock: Clock) -> None:
    peer = answered_and_woken(clock, SOON * 0.9)
    for look in (1, 3, 4):
        assert await peer.finds(clock.request_at_look(look))
        assert clock.looks == look
        peer.answered()


async def test_a_peer_is_looked_at_often_between_two_turns_of_the_other_tasks(
    clock: Clock,
) -> None:
    turns = 0

    async def other_task() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    peer = answered_and_woken(clock, SOON * 0.9, looks=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other_task)
        assert not await peer.finds(clock.request_at_look(100))
        nursery.cancel_scope.cancel()
    assert clock.looks == 6, "the time is looked at after every third look"
    assert 1 <= turns <= 3


async def test_polling_ends_after_a_moment_until_the_next_prompt_request(clock: Clock) -> None:
    peer = answered_and_woken(clock, SOON * 0.9)
    assert not await peer.finds(clock.request_at_look(100))
    assert clock.looks == 5
    peer.answered()
    assert not await peer.finds(clock.request_at_look(1))
    assert clock.looks == 0, "polled again before the next prompt request"
    peer.woken()
    assert await peer.finds(clock.request_at_look(1))


@pytest.mark.parametrize("after", [SOON * 1.1, 2.0])
async def test_rare_requests_cost_nothing(clock: Clock, after: float) -> None:
    assert not await answered_and_woken(clock, after).finds(clock.request_at_look(1))
    assert clock.looks == 0


async def test_a_long_request_does_not_end_the_polling(clock: Clock) -> None:
    """Polling costs least after those, and a guest that frees much reports without a pause."""
    peer = answered_and_woken(clock, SOON * 0.9)
    assert await peer.finds(clock.request_at_look(1))
    clock.now += 0.1
    peer.answered()
    assert await peer.finds(clock.request_at_look(1))


async def test_there_is_no_polling_before_the_first_answer(clock: Clock) -> None:
    peer = Polling()
    peer.woken()
    assert not await peer.finds(clock.request_at_look(1))


async def test_there_is_no_polling_with_a_single_processor(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_ALONE", True)
    assert not await answered_and_woken(clock, 0).finds(clock.request_at_look(1))
