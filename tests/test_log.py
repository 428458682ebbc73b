"""Log lines: whose they are, and how many."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from vhost_balloon import log
from vhost_balloon.log import BURST, INTERVAL, VmLog, logger, set_up


class Stderr:
    """What was written to stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text

    def lines(self) -> list[str]:
        return self.text().splitlines()


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Stderr]:
    """What set_up() makes the program write; the logger is put back as it was."""
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield Stderr(capsys)
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_a_line_says_which_vm_it_is_about(stderr: Stderr) -> None:
    set_up("debug", "text")
    vm = VmLog("web1")
    logger.debug("a", extra={"vm": "web1"})
    vm.info("b 100%")
    vm.warning("c")
    logger.error("no VM %d", 7)
    assert stderr.lines() == [
        "debug: web1: a",
        "info: web1: b 100%",
        "warning: web1: c",
        "error: no VM 7",
    ]


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", 2), ("info", 2), ("warning", 1), ("error", 0)]
)
def test_a_level_hides_what_is_below_it(stderr: Stderr, level: str, shown: int) -> None:
    set_up(level, "text")
    vm = VmLog("web1")
    for say in (vm.info, vm.warning):
        say("x")
    assert len(stderr.lines()) == shown


def test_json_has_one_object_a_line(stderr: Stderr) -> None:
    set_up("info", "json")
    VmLog("web1").info('a "quoted"\nline')
    logger.warning("no VM")
    first, second = (json.loads(line) for line in stderr.lines())
    assert {**first, "time": 0} == {
        "time": 0,
        "level": "info",
        "message": 'a "quoted"\nline',
        "vm": "web1",
    }
    assert isinstance(first["time"], float)
    assert "vm" not in second


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_bug_is_logged_with_its_traceback(stderr: Stderr, style: str) -> None:
    set_up("info", style)
    try:
        raise ValueError("bug")
    except ValueError:
        logger.exception("failed")
    assert "ValueError: bug" in stderr.text()
    assert "Traceback" in stderr.text()


def test_setting_up_twice_does_not_say_everything_twice(stderr: Stderr) -> None:
    set_up("info", "json")
    set_up("info", "text")
    VmLog("web1").info("once")
    assert stderr.lines() == ["info: web1: once"]


def test_a_guest_cannot_fill_the_log(stderr: Stderr, clock: Clock) -> None:
    set_up("info", "text")
    vm, other = VmLog("web1"), VmLog("web2")
    for number in range(1000):
        vm.misbehaved(f"again {number}")
    other.misbehaved("mine")
    vm.warning("ours are not limited")
    said = stderr.lines()
    assert said[:BURST] == [f"warning: web1: again {n}" for n in range(BURST)]
    assert said[BURST:] == ["warning: web2: mine", "warning: web1: ours are not limited"]
    clock.now += INTERVAL
    vm.misbehaved("later")
    assert stderr.lines()[BURST + 2 :] == [
        f"warning: web1: {1000 - BURST} more messages were left out",
        "warning: web1: later",
    ]


def test_a_front_end_that_comes_and_goes_cannot_fill_the_log_nor_hide_misbehaviour(
    stderr: Stderr, clock: Clock
) -> None:
    set_up("info", "text")
    vm = VmLog("web1")
    for _ in range(1000):
        vm.info("front end gone")
    vm.misbehaved("bad")
    assert stderr.lines() == ["info: web1: front end gone"] * BURST + ["warning: web1: bad"]
    clock.now += INTERVAL
    vm.info("front end gone")
    assert stderr.lines()[-2:] == [
        f"info: web1: {1000 - BURST} more messages were left out",
        "info: web1: front end gone",
    ]


def test_what_fits_into_the_limit_is_not_counted_as_left_out(stderr: Stderr, clock: Clock) -> None:
    set_up("info", "text")
    vm = VmLog("web1")
    for _ in range(BURST):
        vm.misbehaved("x")
    clock.now += INTERVAL
    vm.misbehaved("y")
    assert len(stderr.lines()) == BURST + 1


def test_until_it_is_set_up_the_log_is_pythons(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vhost_balloon"):
        VmLog("web1").info("seen")
    assert [getattr(record, "vm", None) for record in caplog.records] == ["web1"]
