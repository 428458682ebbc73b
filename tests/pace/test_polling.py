"""Who asks again at once is looked at for a moment, and nobody else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vhost_balloon.pace import polling
from vhost_balloon.pace.polling import POLL_SECONDS, SHORT, SOON, Polling


class Clock:
    """Stands in for the real clock: some five looks fit into a poll."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def __call__(self) -> float:
        return self.now

    def asked_at_look(self, number: int) -> Callable[[], bool]:
        def asks() -> bool:
            self.looks += 1
            self.now += POLL_SECONDS / 4.5
            return self.looks == number

        self.looks = 0
        return asks


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(polling, "perf_counter", clock)
    monkeypatch.setattr(polling, "_ALONE", False)
    return clock


def answered_and_woken(clock: Clock, after: float) -> Polling:
    asker = Polling()
    asker.answered()
    clock.now += after
    asker.woken()
    asker.answered()
    return asker


async def test_who_asked_soon_is_looked_at_until_it_asks(clock: Clock) -> None:
    asker = answered_and_woken(clock, SOON * 0.9)
    for look in (1, 3, 4):
        assert await asker.finds(clock.asked_at_look(look))
        assert clock.looks == look
        asker.answered()


async def test_who_does_not_ask_in_a_moment_is_left_to_the_kernel(clock: Clock) -> None:
    asker = answered_and_woken(clock, SOON * 0.9)
    assert not await asker.finds(clock.asked_at_look(100))
    assert clock.looks == 5
    asker.answered()
    assert not await asker.finds(clock.asked_at_look(1))
    assert clock.looks == 0, "until it asks soon again"
    asker.woken()
    assert await asker.finds(clock.asked_at_look(1))


@pytest.mark.parametrize("after", [SOON * 1.1, 2.0])
async def test_who_asks_rarely_costs_nothing(clock: Clock, after: float) -> None:
    assert not await answered_and_woken(clock, after).finds(clock.asked_at_look(1))
    assert clock.looks == 0


async def test_who_asks_for_much_is_not_looked_at(clock: Clock) -> None:
    asker = answered_and_woken(clock, SOON * 0.9)
    assert await asker.finds(clock.asked_at_look(1))
    clock.now += SHORT * 1.1
    asker.answered()
    assert not await asker.finds(clock.asked_at_look(1))


async def test_who_was_never_answered_is_not_looked_at(clock: Clock) -> None:
    asker = Polling()
    asker.woken()
    assert not await asker.finds(clock.asked_at_look(1))


async def test_nobody_is_looked_at_with_a_single_processor(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_ALONE", True)
    assert not await answered_and_woken(clock, 0).finds(clock.asked_at_look(1))
