"""Failures that end a client or a service, and never what is served beside it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.control_client import MemoryListener, change, two_vms
from tests.end_to_end import LogLines, by_hand, serving
from tests.scrapes import GET, ask, scrape
from tests.scrapes import serving as serving_metrics
from vhost_balloon import control_events, daemon
from vhost_balloon.containment import (
    FIRST_PAUSE,
    LAST_PAUSE,
    MISTAKE_PAUSE,
    PLACES,
    InternalErrors,
)
from vhost_balloon.errors import OperatorError
from vhost_balloon.log import BURST
from vhost_balloon.metrics_text import Exposition
from vhost_balloon.store import Store
from vhost_balloon.vm import Machine, Vm
from vhost_balloon.wakefulness import Wakefulness


class BugError(Exception):
    """Stands for any mistake in this program."""


def fail(*arguments: object, **_: object) -> None:
    """Raise the exception that is given, or a bug of ours."""
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
    assert line.endswith("BugError: deep"), "the groups around a lone exception say nothing"


async def test_a_failure_beside_a_cancellation_is_contained_and_the_cancellation_goes_on() -> None:
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


async def test_what_the_operator_has_to_mend_is_said_once_and_tried_again(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    errors, tries = InternalErrors(), list[float]()

    async def run() -> None:
        tries.append(trio.current_time())
        if len(tries) < 5:
            raise OperatorError("the port is taken")

    await errors.supervise("metrics", run)
    assert tries[-1] - tries[0] == pytest.approx(4 * MISTAKE_PAUSE)
    assert log_lines.lines == ["warning: the port is taken; it is tried again until it works"]
    assert errors.counts["metrics"] == 0


async def test_every_place_has_its_series_from_the_start() -> None:
    machine = two_vms()
    machine.internal_errors.counts["events"] = 3
    found = await scrape(machine)
    name = "vhost_balloon_internal_errors_total"
    for vm in machine.vms:
        series = {
            dict(labels)["where"]: value
            for (n, labels), value in found.items()
            if n == name and ("vm", vm) in labels
        }
        assert series == {**dict.fromkeys(PLACES, 0), "events": 3}


# Where it counts: a VM that is served beside


async def test_a_scrape_that_fails_ends_alone(
    monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    async with serving_metrics() as server:
        with monkeypatch.context() as patch:
            patch.setattr(Exposition, "render", fail)
            for _ in range(2):
                with pytest.raises((ValueError, IndexError, trio.BrokenResourceError)):
                    await ask(server, GET)
        status, _, body = await ask(server, GET)
        assert status == 200
        assert b'vhost_balloon_internal_errors_total{vm="web1",where="metrics-client"} 2' in body
    assert log_lines.having("warning: internal error in metrics-client", "BugError")


@pytest.mark.parametrize(
    ("where", "owner", "name"),
    [
        ("wakefulness", Wakefulness, "run"),
        ("store", Store, "run"),
        ("status", daemon, "_keep_status"),
        ("counters", daemon, "_save_counters"),
        ("upgrade", daemon.Successor, "run"),
    ],
)
async def test_a_vm_is_served_beside_a_service_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, owner: object, name: str
) -> None:
    monkeypatch.setattr(owner, name, fail)
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        assert host.machine.internal_errors.counts[where] == 1
        # Without it nobody knows how long a request waited.
        if where != "wakefulness":
            await guest.works(host.vm())
        else:
            await guest.inflate([5000])


async def test_events_that_fail_cost_the_guest_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_events.BalloonEvents, "changed", fail)
    async with serving(tmp_path, f"--control-socket={tmp_path}/control") as host:
        async with by_hand(host.path()) as guest:
            for pages in (1, 2):
                await guest.front_end.set_config(slice(4, 8), pages.to_bytes(4, "little"))
            await guest.works(host.vm())
        assert host.machine.internal_errors.counts["events"] >= 2


async def test_an_event_that_fails_is_followed_by_others(
    server: MemoryListener, machine: Machine, monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:  # fmt: skip
    client = server.connect()
    await client.negotiate()
    change(machine, 1)
    assert (await client.read())["data"]["actual"] == 1
    with monkeypatch.context() as patch:
        change(machine, 2)
        patch.setattr(Vm, "statistics", fail)
        await trio.sleep(2)
    assert machine.internal_errors.counts["events"] == 1
    change(machine, 3)
    assert (await client.read())["data"]["actual"] == 3
