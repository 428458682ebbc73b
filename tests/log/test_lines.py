"""Log lines: the VM they name, and limits of their number."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.end_to_end import LogLines
from tests.support.logs import removed_at_the_end
from vhost_balloon.log import lines as log
from vhost_balloon.log.lines import (
    BURST,
    INTERVAL,
    MAX_TEXT,
    MAX_TRACEBACK,
    JsonFormatter,
    Shortage,
    TextFormatter,
    VmLog,
    logger,
)
from vhost_balloon.log.setup import set_up
from vhost_balloon.printable import encodable


class Stderr:
    """The lines written to stderr so far."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._text = ""

    def text(self) -> str:
        self._text += self._capfd.readouterr().err
        return self._text

    def lines(self) -> list[str]:
        return self.text().splitlines()


@pytest.fixture
def stderr(capfd: pytest.CaptureFixture[str]) -> Iterator[Stderr]:
    """The program's output after set_up()."""
    with removed_at_the_end():
        yield Stderr(capfd)


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


def test_setting_up_twice_does_not_double_the_lines(stderr: Stderr) -> None:
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


def test_lines_within_the_limit_are_not_counted_as_left_out(stderr: Stderr, clock: Clock) -> None:
    set_up("info", "text")
    vm = VmLog("web1")
    for _ in range(BURST):
        vm.misbehaved("x")
    clock.now += INTERVAL
    vm.misbehaved("y")
    assert len(stderr.lines()) == BURST + 1


def test_before_the_set_up_the_log_is_pythons(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vhost_balloon"):
        VmLog("web1").info("seen")
    assert [getattr(record, "vm", None) for record in caplog.records] == ["web1"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, ": raise LimitNOFILE= (ulimit -n)"),
        (errno.ENFILE, ": raise the sysctl fs.file-max"),
        (errno.ENOMEM, ""),
    ],
)
def test_a_shortage_is_one_line_a_window(
    log_lines: LogLines, clock: Clock, number: int, remedy: str
) -> None:
    shortage, error = Shortage(), OSError(number, os.strerror(number))
    for again in range(300):
        shortage.met(error, "front end", f"web{again}")
    line = f"warning: web0: front end has to wait: {error.strerror}{remedy}"
    assert log_lines.lines == [line]
    clock.now += INTERVAL
    for _ in range(300):
        shortage.met(error, "a client")
    assert log_lines.lines[1:] == [f"warning: a client has to wait: {error.strerror}{remedy}"]


# Content of a line


ANY = st.text(st.characters())
"""Includes control characters and lone surrogates."""


def record(
    message: str, vm: str | None = None, error: BaseException | None = None
) -> logging.LogRecord:
    """A record as VmLog makes it."""
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("vhost_balloon", logging.ERROR, "", 0, "%s", (message,), exc_info)
    if vm is not None:
        made.vm = vm
    return made


@given(message=ANY, vm=st.none() | ANY)
def test_a_text_line_is_one_line_and_printable(message: str, vm: str | None) -> None:
    line = TextFormatter().format(record(message, vm))
    assert line.isprintable()
    assert line.encode().decode() == line


@example(message="half of a pair: \ud800", vm=None, said="")
@given(message=ANY, vm=st.none() | ANY, said=ANY)
def test_a_json_line_is_one_line_with_the_exact_message(
    message: str, vm: str | None, said: str
) -> None:
    line = JsonFormatter().format(record(message, vm, ValueError(said)))
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert found["message"] == encodable(message[:MAX_TEXT])
    assert found.get("vm") == vm
    assert found["traceback"].startswith("ValueError")


@given(said=ANY)
def test_a_traceback_has_lines_and_no_other_control_character(said: str) -> None:
    text = TextFormatter().format(record("failed", "web1", ValueError(said)))
    first, second, *others = text.split("\n")
    assert (first, second[:10]) == ("error: web1: failed", "ValueError")
    assert all(line.isprintable() for line in [second, *others])


def test_names_are_shown_escaped() -> None:
    line = TextFormatter().format(record("a\nb\x9b\u2066", "we\x1bb\x7f\u202e\udcff\u9b5a"))
    assert line == "error: we\\x1bb\\x7f\\u202e\\udcff\u9b5a: a\\nb\\x9b\\u2066"


def test_a_line_is_of_bounded_length() -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record("a" * 10**6))
        assert MAX_TEXT < len(line) < MAX_TEXT + 100
        assert "aaa..." in line
        trace = formatter.format(record("a", None, ValueError("first" + "b" * 10**6 + "last")))
        assert MAX_TRACEBACK < len(trace) < MAX_TRACEBACK + 200
        assert "ValueError: firstbb" in trace
        assert "bblast" in trace


@pytest.mark.parametrize("text", ["\udcff", "a\ud800b"])
def test_json_can_be_read_by_strict_parsers(text: str) -> None:
    """Which refuse halves of surrogate pairs."""
    fields = json.loads(JsonFormatter().format(record(text, "web1", ValueError(text))))
    json.dumps(fields, ensure_ascii=False).encode()
    assert fields["message"] == ascii(text)[1:-1]
