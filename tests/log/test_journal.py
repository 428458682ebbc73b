"""Lines for systemd's journal: their fields, and a journal that restarts or does not read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.logs import Entry, FakeJournal, StandardError, drained
from vhost_balloon.log import output as log_output
from vhost_balloon.log.lines import VmLog, logger
from vhost_balloon.log.setup import set_up


@pytest.fixture
def journal(
    tmp_path: Path, stderr: StandardError, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeJournal]:
    monkeypatch.setattr(log_output, "JOURNAL_SOCKET", str(tmp_path / "socket"))
    with FakeJournal(tmp_path / "socket") as found:
        yield found


def entry(message: str, number: int, **fields: str) -> Entry:
    plain = {"MESSAGE": message, "PRIORITY": str(number), "SYSLOG_IDENTIFIER": "vhost-balloon"}
    return {name: value.encode() for name, value in (plain | fields).items()}


def test_the_journal_gets_fields(journal: FakeJournal) -> None:
    journal.become_stderr()
    set_up("debug")
    VmLog("web1").info("a")
    logger.error("b")
    logger.debug("c", extra={"vm": "x=\n\u9b5a\udcff"})
    assert journal.entries() == [
        entry("web1: a", 6, VM="web1"),
        entry("b", 3),
        entry("x=\\n\u9b5a\\udcff: c", 7, VM="x=\n\u9b5a\\udcff"),
    ]
    assert drained(journal.reader) == b""


def test_a_traceback_is_one_entry(journal: FakeJournal) -> None:
    journal.become_stderr()
    set_up()
    try:
        raise ValueError("bug")
    except ValueError:
        logger.critical("failed", exc_info=True)
    (found,) = journal.entries()
    assert found["PRIORITY"] == b"2"
    assert found["MESSAGE"].startswith(b"failed\nTraceback (most recent call last):\n")
    assert found["MESSAGE"].endswith(b"\nValueError: bug")


def test_json_for_the_journal(journal: FakeJournal) -> None:
    journal.become_stderr()
    set_up("info", "json")
    VmLog("web1").warning("a")
    (found,) = journal.entries()
    assert json.loads(found["MESSAGE"])["message"] == "a"
    assert (found["PRIORITY"], found["VM"]) == (b"4", b"web1")


@given(message=st.text(st.characters()), vm=st.text(st.characters()))
def test_any_message_makes_three_fields_and_the_vm(message: str, vm: str) -> None:
    data = b"".join(map(log_output._field, ("MESSAGE", "VM"), (message, vm)))
    found = FakeJournal.parsed(data)
    assert found == {
        "MESSAGE": message.encode(errors="backslashreplace"),
        "VM": vm.encode(errors="backslashreplace"),
    }


def test_a_journal_that_is_out_of_reach_gets_priorities_through_standard_error(
    journal: FakeJournal,
) -> None:
    journal.become_stderr()
    set_up("debug")
    journal.socket.close()
    VmLog("web1").warning("a")
    os.unlink(journal.path)
    try:
        raise ValueError("bug")
    except ValueError:
        logger.exception("failed")
    first, *others = drained(journal.reader).decode().splitlines()
    assert first == "<4>web1: a"
    assert len(others) > 3
    assert all(line.startswith("<3>") for line in others)
    assert others[-1] == "<3>ValueError: bug"


def test_a_journal_that_restarts(journal: FakeJournal) -> None:
    journal.become_stderr()
    set_up()
    logger.info("before")
    assert len(journal.entries()) == 1
    journal.restart()
    logger.info("after")
    assert [found["MESSAGE"] for found in journal.entries()] == [b"after"]


def test_a_journal_that_does_not_read(journal: FakeJournal) -> None:
    """The queue of entries is short, the stream's is long; beyond both, lines are lost."""
    journal.become_stderr()
    set_up()
    count = 20_000
    for number in range(count):
        logger.info("line %d", number)
    entries = [found["MESSAGE"].decode() for found in journal.entries()]
    lines = drained(journal.reader).decode().splitlines()
    assert entries == [f"line {n}" for n in range(len(entries))]
    assert lines == [f"<6>line {len(entries) + n}" for n in range(len(lines))]
    lost = count - len(entries) - len(lines)
    assert lost > 0
    logger.info("next")
    assert [found["MESSAGE"].decode() for found in journal.entries()] == [
        f"{lost} lines were lost because nobody read the log",
        "next",
    ]


@pytest.mark.parametrize("value", ["", "0:0", "nonsense", "1:2:3"])
def test_another_stream_is_not_the_journal(
    stderr: StandardError, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    reader = stderr.become_pipe()
    monkeypatch.setenv("JOURNAL_STREAM", value)
    set_up()
    VmLog("web1").info("a")
    assert drained(reader) == b"info: web1: a\n"
