"""Failures end a client or a service, and never the VM beside it."""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.support.control_client import MemoryListener, change
from tests.support.end_to_end import LogLines, by_hand, serving
from vhost_balloon.containment import (
    FIRST_PAUSE,
    LAST_PAUSE,
    MISTAKE_PAUSE,
    PLACES,
    InternalErrors,
)
from vhost_balloon.control import events as control_events
from vhost_balloon.daemon import daemon
from vhost_balloon.daemon.successor import Successor
from vhost_balloon.errors import OperatorError
from vhost_balloon.log.lines import BURST
from vhost_balloon.vm.vm import Vm


class BugError(Exception):
    """Stands for any bug in this program."""


def fail(*arguments: object, **_: object) -> None:
    """Raise the given exception, or a bug."""
    for argument in arguments:
        if isinstance(argument, BaseException):
            raise argument
    raise BugError


async def test_only_exceptions_are_contained_and_cancellation_is_not(log_lines: LogLines) -> None:
    errors = InternalErrors()
    with trio.CancelScope() as scope:
        scope.cancel()
        with errors.contained("metrics"):
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    with pytest.raises(KeyboardInterrupt), errors.contained("metrics"):
        fail(KeyboardInterrupt())
    assert errors.counts["metrics"] == 0
    with errors.contained("metrics"):
        fail(ExceptionGroup("", [ExceptionGroup("", [BugError("deep")])]))
    assert errors.counts["metrics"] == 1
    (line,) = log_lines.lines
    assert line.startswith("warning: internal error in metrics\n")
    assert line.endswith("BugError: deep"), "groups around a single exception are left out"


async def test_a_failure_beside_a_cancellation_is_contained_and_the_cancellation_continues() -> (
    None
):
    errors = InternalErrors()

    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise BugError

    with trio.CancelScope() as scope:
        with errors.contained("control-client"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_when_cancelled)
                await trio.lowlevel.checkpoint()
                scope.cancel()
        await trio.lowlevel.checkpoint()
        raise AssertionError("the cancellation was lost")
    assert errors.counts["control-client"] == 1


async def test_failures_that_clients_cause_all_the_time_do_not_fill_the_log(
    log_lines: LogLines,
) -> None:
    errors = InternalErrors()
    for _ in range(1000):
        with errors.contained("metrics-client"):
            fail()
    assert errors.counts["metrics-client"] == 1000
    assert len(log_lines.lines) == BURST


async def test_a_service_that_fails_is_started_again_later_and_later(
    autojump_clock: MockClock,
) -> None:
    errors, starts = InternalErrors(), list[float]()

    async def run() -> None:
        starts.append(trio.current_time())
        if len(starts) < 10:
            raise BugError

    began = trio.current_time()
    await errors.supervise("status", run)
    pauses = [later - sooner for sooner, later in pairwise(starts)]
    assert starts[0] == began
    assert pauses == pytest.approx([FIRST_PAUSE * 2**n for n in range(6)] + 3 * [LAST_PAUSE])
    assert errors.counts["status"] == 9


async def test_after_a_long_time_the_pause_is_short_again(autojump_clock: MockClock) -> None:
    errors, ends = InternalErrors(), list[float]()

    async def run() -> None:
        if ends:
            assert trio.current_time() - ends[-1] == pytest.approx(FIRST_PAUSE)
        if len(ends) == 5:
            return
        await trio.sleep(LAST_PAUSE + 1)
        ends.append(trio.current_time())
        raise BugError

    await errors.supervise("status", run)
    assert len(ends) == 5


async def test_an_operators_mistake_is_logged_once_and_tried_again(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    errors, tries = InternalErrors(), list[float]()

    async def run() -> None:
        tries.append(trio.current_time())
        if len(tries) < 5:
            raise OperatorError("the port is taken")

    await errors.supervise("metrics", run)
    assert tries[-1] - tries[0] == pytest.approx(4 * MISTAKE_PAUSE)
    assert log_lines.lines == ["warning: the port is taken; trying again until it works"]
    assert errors.counts["metrics"] == 0


def internal_errors(text: bytes) -> dict[str, int]:
    """The metric's series by place."""
    found = re.findall(
        r'^vhost_balloon_internal_errors_total\{.*where="([a-z-]+)".*\} ([0-9]+)',
        text.decode(),
        re.M,
    )
    return {where: int(count) for where, count in found}


async def scraped(log_lines: LogLines) -> bytes:
    """The answer of the daemon's metrics address; empty if it hangs up."""
    (line,) = log_lines.having("metrics on http://")
    port = int(line.rpartition(":")[2].removesuffix("/metrics"))
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = b""
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                text += data
        return text


async def test_every_place_has_its_series_from_the_start(
    tmp_path: Path, log_lines: LogLines
) -> None:
    async with serving(tmp_path, "--metrics-address=127.0.0.1:0") as host:
        host.vm().internal_errors.counts["events"] = 3
        found = internal_errors(await scraped(log_lines))
    assert found == {**dict.fromkeys(PLACES, 0), "events": 3}


def test_every_place_is_one_where_failures_are_contained() -> None:
    """Every value of the metric's label can be counted."""
    package = Path(daemon.__file__).parents[1]
    text = "".join(path.read_text() for path in package.rglob("*.py"))
    used = re.findall(r'(?:\bstart|\.contained|\.record|\.supervise)\(\s*"([a-z-]+)"', text)
    assert set(PLACES) <= set(used)


# A VM served meanwhile


async def test_a_scrape_that_fails_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    async with (
        serving(tmp_path, "--metrics-address=127.0.0.1:0") as host,
        by_hand(host.path()) as guest,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Vm, "statistics", fail)
            for _ in range(2):
                assert b"200 OK" not in await scraped(log_lines)
        text = await scraped(log_lines)
        assert b"200 OK" in text
        assert internal_errors(text)["metrics-client"] == 2
        await guest.works(host.vm())
    assert log_lines.having("warning: internal error in metrics-client", "BugError")


@pytest.mark.parametrize(
    ("where", "owner", "name"),
    [
        ("log", daemon, "tell_losses"),
        ("status", daemon, "_keep_status"),
        ("counters", daemon, "_save_counters"),
        ("upgrade", Successor, "run"),
    ],
)
async def test_a_vm_is_served_beside_a_service_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, owner: object, name: str
) -> None:
    monkeypatch.setattr(owner, name, fail)
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        assert host.vm().internal_errors.counts[where] == 1
        await guest.works(host.vm())


async def test_events_that_fail_cost_the_guest_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_events.BalloonEvents, "changed", fail)
    async with serving(tmp_path, f"--control-socket={tmp_path}/control") as host:
        async with by_hand(host.path()) as guest:
            for pages in (1, 2):
                await guest.front_end.set_config(slice(4, 8), pages.to_bytes(4, "little"))
            await guest.works(host.vm())
        assert host.vm().internal_errors.counts["events"] >= 2


async def test_an_event_that_fails_is_followed_by_others(
    server: MemoryListener, vm: Vm, monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:  # fmt: skip
    client = server.connect()
    await client.negotiate()
    change(vm, 1)
    assert (await client.read())["data"]["actual"] == 1
    with monkeypatch.context() as patch:
        change(vm, 2)
        patch.setattr(Vm, "statistics", fail)
        await trio.sleep(2)
    assert vm.internal_errors.counts["events"] == 1
    change(vm, 3)
    assert (await client.read())["data"]["actual"] == 3
