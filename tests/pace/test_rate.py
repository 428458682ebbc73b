"""The token bucket of --report-rate."""

from __future__ import annotations

from vhost_balloon.pace.rate import Bucket


def test_a_burst_may_be_taken_at_once_and_then_the_rate_applies() -> None:
    bucket, now, taken = Bucket(100, 10), 50.0, 0
    for _ in range(1000):
        while not bucket.is_spent(now):
            bucket.take(1, now)
            taken += 1
        now += 0.0625  # more than a token's worth
    assert taken == 10 + 6250 - 6, "at most a fraction of a token remains each time"


def test_a_caller_that_keeps_to_the_rate_never_finds_it_spent() -> None:
    bucket = Bucket(128, 1)
    for number in range(1000):
        assert not bucket.is_spent(7 + number / 128)
        bucket.take(1, 7 + number / 128)


def test_a_pause_earns_one_burst_at_most_and_a_debt_is_paid_first() -> None:
    bucket = Bucket(128, 8)
    bucket.take(8, 0.0)
    bucket.take(24, 1000.0)
    assert bucket.is_spent(1000.125)
    assert not bucket.is_spent(1000.1875)
