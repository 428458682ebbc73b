"""--report-rate limits what reports discard; the rest is acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.end_to_end import BLOCK, MIB, PAGE, LogLines, by_hand, fill, refused, serving
from vhost_balloon.pace.rate import REPORT_BURST, Bucket
from vhost_balloon.sizes import parse_rate

GIB = 1 << 30


@given(
    st.integers(1, 1 << 30),
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 64 * MIB)), max_size=50),
)
def test_no_more_goes_than_the_rate_its_burst_and_one_piece(
    rate: int, pieces: list[tuple[float, int]]
) -> None:
    bucket, now, gone = Bucket(rate, rate * REPORT_BURST), 100.0, 0
    for wait, size in pieces:
        now += wait
        if not bucket.is_spent(now):
            bucket.take(size, now)
            gone += size
    largest = max((size for _, size in pieces), default=0)
    assert gone <= (now - 100) * rate + rate * REPORT_BURST + largest


@given(st.integers(1, 1 << 40))
def test_any_rate_lets_something_go_again(rate: int) -> None:
    bucket = Bucket(rate, rate * REPORT_BURST)
    bucket.take(64 * MIB + rate * REPORT_BURST, 0.0)
    assert bucket.is_spent(64 * MIB / rate / 2)
    assert not bucket.is_spent(64 * MIB / rate * 1.01)


@pytest.mark.parametrize("text", ["512M", "512M/s", "536870912", "0.5GiB/s"])
def test_rates_as_they_are_written(text: str) -> None:
    assert parse_rate(text) == 512 * MIB


async def test_reports_beyond_the_rate_are_kept(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async def let_pass(tenths: int) -> None:
        """Advance in steps, so that the daemon does not believe it was stopped."""
        for _ in range(tenths):
            still_clock.jump(0.1)
            await wait_all_tasks_blocked()

    async with (
        serving(tmp_path, "--report-rate=3M/s") as host,
        by_hand(host.path()) as guest,
    ):
        fill(guest.ram, 8 * MIB, 4 * BLOCK)
        # Two seconds' worth is 6 MiB, and the piece is finished: 2 MiB are owed.
        await guest.report((8 * MIB, 3 * BLOCK))
        assert guest.ram.resident_in(8 * MIB, 3 * BLOCK) == BLOCK
        await let_pass(6)
        await guest.report((8 * MIB + 3 * BLOCK, BLOCK))
        assert guest.ram.resident_in(8 * MIB + 3 * BLOCK, BLOCK) == BLOCK
        assert refused(host.vm()) == {"rate": 2 * BLOCK}
        assert host.vm().statistics().pause_reasons == ("rate",)
        await let_pass(1)
        assert host.vm().statistics().pause_reasons == ()
        await guest.report((8 * MIB + 3 * BLOCK, BLOCK))
        assert guest.ram.resident_in(8 * MIB + 3 * BLOCK, BLOCK) == 0
        assert host.vm().counters.reported_bytes == 5 * BLOCK
        assert not log_lines.having("not discarded"), "it is by rule"
        assert host.vm().statistics().report_rate == 3 * MIB
        await guest.works(host.vm())  # the balloon is not limited


async def test_no_request_waits_for_the_rate(tmp_path: Path, still_clock: MockClock) -> None:
    """No time passes here: a request that waited for time would never be answered."""
    async with serving(tmp_path, "--report-rate=1") as host, by_hand(host.path(), 9 * GIB) as guest:
        fill(guest.ram, 8 * MIB, BLOCK)
        for number in range(8):
            await guest.report((8 * MIB + number * GIB, GIB))
        assert guest.ram.resident_in(8 * MIB, BLOCK) == 0
        assert refused(host.vm()) == {"rate": 8 * GIB - 8 * MIB}


async def test_a_rate_of_a_file(tmp_path: Path, still_clock: MockClock) -> None:
    file = tmp_path / "vm1.toml"
    file.write_text(f'report-rate = "{PAGE}/s"')
    async with serving(tmp_path, f"--config={file}") as host, by_hand(host.path()) as guest:
        for _ in range(2):
            await guest.report((8 * MIB, BLOCK))
        assert refused(host.vm()) == {"rate": BLOCK}
