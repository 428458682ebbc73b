"""Limits that delay: the token bucket, messages of a front end, steps of a guest's work."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.end_to_end import by_hand, serving
from vhost_balloon.rate import (
    MESSAGE_BURST,
    MESSAGE_RATE,
    STEP_BURST,
    STEP_RATE,
    Bucket,
)
from vhost_balloon.turn import Turn


def test_the_limits_are_not_below_what_was_promised() -> None:
    assert min(MESSAGE_RATE, MESSAGE_BURST) >= 20_000


def test_a_burst_is_free_and_what_comes_after_it_is_delayed_to_the_rate() -> None:
    bucket, now = Bucket(100, 10), 50.0
    assert [bucket.take(1, now) for _ in range(10)] == [0.0] * 10
    for _ in range(1000):
        now += bucket.take(1, now)
    assert now == pytest.approx(60)


def test_whoever_keeps_to_the_rate_is_never_delayed() -> None:
    bucket = Bucket(100, 1)
    assert not any(bucket.take(1, 7 + 0.01 * number) > 1e-9 for number in range(1000))


def test_a_rest_is_worth_one_burst_at_most() -> None:
    bucket = Bucket(100, 10)
    bucket.take(10, 0.0)
    assert bucket.take(20, 1000.0) == pytest.approx(0.1)


async def test_too_many_messages_are_delayed_and_all_are_answered(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhost_balloon.vm.MESSAGE_BURST", 500)
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        for _ in range(500):
            await guest.front_end.get_config()
        started, messages = trio.current_time(), 400
        for _ in range(messages):
            await guest.front_end.get_config()
        elapsed = trio.current_time() - started
        assert elapsed == pytest.approx(messages / MESSAGE_RATE, abs=1 / MESSAGE_RATE)


async def test_the_next_front_end_has_what_the_last_one_left(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhost_balloon.vm.MESSAGE_BURST", 100)
    async with serving(tmp_path) as host:
        started, visits = trio.current_time(), 10
        for _ in range(visits):
            async with by_hand(host.path()) as guest:
                for _ in range(40):
                    await guest.front_end.get_config()
        elapsed = trio.current_time() - started
        assert elapsed > (visits * 40 - 100) / MESSAGE_RATE


async def test_a_guest_without_end_gets_a_share_of_the_event_loop(
    autojump_clock: MockClock,
) -> None:
    turn, started = Turn(), trio.current_time()
    for _ in range(int(STEP_BURST)):
        await turn.others()
    assert trio.current_time() == started
    for _ in range(100):
        await turn.others()
    assert trio.current_time() - started == pytest.approx(100 / STEP_RATE)
