"""What follows an answer soon is waited for awake, and nothing else."""

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

    def follows(self, front_end: Polling, kind: str, after: float) -> None:
        """A request of a kind is answered, and the next one comes so many seconds after."""
        front_end.answered(kind)
        self.now += after
        front_end.asked()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(polling, "perf_counter", clock)
    monkeypatch.setattr(polling, "_ALONE", False)
    return clock


@pytest.fixture
def front_end(clock: Clock) -> Polling:
    """One whose deflates are followed soon."""
    front_end = Polling()
    clock.follows(front_end, "deflate", SOON * 0.9)
    front_end.answered("deflate")
    return front_end


async def test_a_request_that_is_followed_soon_is_polled_after(
    clock: Clock, front_end: Polling
) -> None:
    for look in (1, 3, 4):
        assert await front_end.finds(clock.request_at_look(look))
        assert clock.looks == look
        front_end.answered("deflate")


async def test_polling_ends_after_a_moment_and_is_tried_until_a_late_request(
    clock: Clock, front_end: Polling
) -> None:
    assert not await front_end.finds(clock.request_at_look(100))
    assert clock.looks == 5
    clock.now += SOON
    front_end.asked()
    front_end.answered("deflate")
    assert not await front_end.finds(clock.request_at_look(1))
    assert clock.looks == 0, "polled again before the next prompt request"
    clock.now += SOON / 2
    front_end.asked()
    front_end.answered("deflate")
    assert await front_end.finds(clock.request_at_look(1))


async def test_each_kind_is_learned_by_itself(clock: Clock, front_end: Polling) -> None:
    """QEMU reads and writes the config space in one go, and then the guest works for a while."""
    for _ in range(3):
        clock.follows(front_end, "read", SOON * 0.1)
        clock.follows(front_end, "write", SOON * 5)
    front_end.answered("read")
    assert await front_end.finds(clock.request_at_look(2))
    front_end.answered("write")
    assert not await front_end.finds(clock.request_at_look(1))
    assert clock.looks == 0


async def test_a_long_request_does_not_end_the_polling(clock: Clock, front_end: Polling) -> None:
    """Polling costs least after those, and a guest that frees much reports without a pause."""
    assert await front_end.finds(clock.request_at_look(1))
    clock.now += 0.1
    front_end.answered("deflate")
    assert await front_end.finds(clock.request_at_look(1))


@pytest.mark.parametrize("after", [SOON * 1.1, 2.0])
async def test_rare_requests_cost_nothing(clock: Clock, after: float) -> None:
    front_end = Polling()
    for _ in range(3):
        clock.follows(front_end, "deflate", after)
    front_end.answered("deflate")
    assert not await front_end.finds(clock.request_at_look(1))
    assert clock.looks == 0


async def test_others_have_their_turn_and_whoever_answers_polls_instead(
    clock: Clock, front_end: Polling
) -> None:
    turns = 0

    async def other_task() -> None:
        nonlocal turns
        while turns < 2:
            turns += 1
            await trio.lowlevel.checkpoint()
        front_end.answered("something else")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other_task)
        assert not await front_end.finds(clock.request_at_look(100))
    assert turns == 2
    assert 1 <= clock.looks <= 4, "polled on after the other one's answer"


async def test_a_peer_is_looked_at_often_between_two_turns(
    clock: Clock, front_end: Polling
) -> None:
    assert not await front_end.finds(clock.request_at_look(100), looks=3)
    assert clock.looks == 6, "the time is looked at after every third look"


async def test_there_is_no_polling_before_the_first_answer(clock: Clock) -> None:
    front_end = Polling()
    front_end.asked()
    assert not await front_end.finds(clock.request_at_look(1))


async def test_there_is_no_polling_with_a_single_processor(
    clock: Clock, front_end: Polling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_ALONE", True)
    assert not await front_end.finds(clock.request_at_look(1))
