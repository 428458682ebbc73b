"""Lines are written whole, in order, and without waiting."""

from __future__ import annotations

import errno
import json
import logging
import os
import pty
import socket
import stat
import termios
import tty
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.helpers import readable
from tests.support.logs import StandardError, drained, removed_at_the_end
from vhost_balloon.log.lines import VmLog, logger
from vhost_balloon.log.output import LogHandler, Output, priority
from vhost_balloon.log.setup import hand_over, set_up

LINE = b"x" * 99 + b"\n"


def fill(output: Output, line: bytes = LINE) -> int:
    """Write until a line is lost; return how many were written."""
    for number in range(1_000_000):
        try:
            output.write(line)
        except BlockingIOError:
            return number
    raise AssertionError("it never fills")


# Kinds of standard error

Pair = tuple[int, int]


def a_pipe() -> Pair:
    return os.pipe()


def a_terminal() -> Pair:
    master, terminal = pty.openpty()
    tty.setraw(terminal)
    return master, terminal


def a_terminal_that_adds_to_newlines() -> Pair:
    return pty.openpty()


def a_stream_socket() -> Pair:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def a_tcp_socket() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        return server.accept()[0].detach(), theirs.detach()


KINDS = [a_pipe, a_terminal, a_terminal_that_adds_to_newlines, a_stream_socket, a_tcp_socket]


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_stops_costs_lines_and_no_line_is_torn(
    kind: Callable[[], Pair], foreign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """foreign: the descriptor cannot be reopened, as if it were another user's."""
    reader, number = kind()
    if foreign:
        monkeypatch.setattr(os, "open", _refused)
    with closing(Output(number)) as output:
        monkeypatch.undo()
        assert not readable(reader)
        flags = os.get_blocking(number)
        went = fill(output)
        assert went > 20
        data = drained(reader)
        for _ in range(3):
            output.flush()
            data += drained(reader)
        output.write(b"later\n")
        output.flush()
        data += drained(reader)
        assert data.replace(b"\r\n", b"\n") == LINE * went + b"later\n"
        assert os.get_blocking(number) == flags, "its flags are shared"
    os.close(reader)
    os.close(number)


def _refused(*args: object) -> int:
    raise PermissionError(errno.EACCES, "refused")


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
def test_a_terminal_that_was_stopped_by_a_key(
    foreign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, terminal = pty.openpty()
    if foreign:
        monkeypatch.setattr(os, "open", _refused)
    with closing(Output(terminal)) as output:
        monkeypatch.undo()
        output.write(b"seen\n")
        assert drained(master) == b"seen\r\n"
        termios.tcflow(terminal, termios.TCOOFF)  # Ctrl-S
        fill(output)
        termios.tcflow(terminal, termios.TCOON)
        output.flush()
        output.write(b"again\n")
        assert drained(master).endswith(b"again\r\n")
    os.close(master)
    os.close(terminal)


def test_many_short_lines_for_a_foreign_terminal_that_is_read_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If it is nearly full, a write of several bytes could wait for a reader."""
    master, terminal = pty.openpty()
    monkeypatch.setattr(os, "open", _refused)
    with closing(Output(terminal)) as output:
        monkeypatch.undo()
        lost = went = 0
        data = b""
        for number in range(3000):
            try:
                output.write(b"\n" * 77 + b"a\n")
                went += 1
            except BlockingIOError:
                lost += 1
                data += os.read(master, 1 + number % 300)
        while output.rest:
            data += drained(master)
            output.flush()
        data += drained(master)
        assert lost > 100
        assert data.count(b"a") == went
    os.close(master)
    os.close(terminal)


def test_a_long_line_comes_in_one_piece_or_with_its_rest_first() -> None:
    """A line longer than a pipe's buffers, with other lines waiting behind it."""
    reader, number = os.pipe()
    long = b"[" + b"1," * 100_000 + b"1]\n"
    with closing(Output(number)) as output:
        output.write(long)
        assert 0 < len(output.rest) < len(long)
        data = b""
        lost = 0
        while output.rest:
            try:
                output.write(b'"next"\n')
            except BlockingIOError:
                lost += 1
            data += drained(reader)
        assert lost
        data += drained(reader)
        assert data == long + b'"next"\n'
    os.close(reader)
    os.close(number)


def test_a_reader_that_has_gone_and_a_new_one(tmp_path: Path) -> None:
    """A FIFO keeps unread data, and so does Output."""
    path = tmp_path / "log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    number = os.open(path, os.O_WRONLY)
    with closing(Output(number)) as output:
        output.write(b"y" * 100_000 + b"\n")
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            output.write(LINE)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        data = drained(reader)
        output.write(LINE)
        assert data + drained(reader) == b"y" * 100_000 + b"\n" + LINE
    os.close(reader)
    os.close(number)


def test_a_fifo_without_a_reader_yet(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    number = os.open(path, os.O_WRONLY)
    os.close(reader)
    with closing(Output(number)) as output:  # without a reader it cannot be reopened
        with pytest.raises(BrokenPipeError):
            output.write(LINE)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        went = fill(output)
        assert drained(reader) == LINE * went
    os.close(reader)
    os.close(number)


def test_a_file_is_written_in_order_with_its_other_users(tmp_path: Path) -> None:
    path = tmp_path / "log"
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with closing(Output(number)) as output:
        output.write(b"first\n")
        with path.open("ab") as other:
            other.write(b"theirs\n")
        output.write(b"z" * 100_000 + b"\n")
    os.close(number)
    assert path.read_bytes() == b"first\ntheirs\n" + b"z" * 100_000 + b"\n"


# The handler


def test_lost_lines_are_reported_before_the_next_line(stderr: StandardError) -> None:
    reader = stderr.become_pipe()
    set_up()
    vm = VmLog("web1")
    for number in range(3000):
        vm.warning(f"line {number} {'.' * 80}")
    said = drained(reader).decode().splitlines()
    assert said == [f"warning: web1: line {n} {'.' * 80}" for n in range(len(said))]
    vm.warning("next")
    vm.warning("last")
    assert drained(reader).decode().splitlines() == [
        f"warning: {3000 - len(said)} lines were lost because nobody read the log",
        "warning: web1: next",
        "warning: web1: last",
    ]


def test_json_stays_parseable(stderr: StandardError) -> None:
    reader = stderr.become_pipe()
    set_up("info", "json")
    vm = VmLog("web1")
    for number in range(500):
        try:
            raise ValueError("b" * 15_000)
        except ValueError:
            logger.exception("bug %d", number)
    data = drained(reader)
    for number in range(3):
        vm.warning(f"later {number}")
        data += drained(reader)
    entries = [json.loads(line) for line in data.decode().splitlines()]
    assert [entry["message"] for entry in entries[-3:]] == [f"later {n}" for n in range(3)]
    lost = f"{504 - len(entries)} lines were lost because nobody read the log"
    assert [entry["message"] for entry in entries].count(lost) == 1


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda stderr: stderr.become_file("/dev/full"), "No space left on device"),
        (lambda stderr: stderr.become_file("/", os.O_PATH), "Bad file descriptor"),
    ],
    ids=["full", "closed"],
)
def test_an_error_costs_the_line(
    stderr: StandardError, break_it: Callable[[StandardError], None], reason: str
) -> None:
    break_it(stderr)
    set_up()
    for number in range(3):
        VmLog("web1").info(f"{number}")
    reader = stderr.become_pipe()
    VmLog("web1").info("seen")
    assert drained(reader).decode().splitlines() == [
        f"warning: 3 lines were lost because of an error: {reason}",
        "info: web1: seen",
    ]


def test_a_pipe_without_a_reader(stderr: StandardError) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    handler = set_up()
    os.close(reader)
    for number in range(3):
        VmLog("web1").info(f"{number}")
    assert handler.lost == 3


def test_the_next_program_reports_lines_that_this_one_lost(stderr: StandardError) -> None:
    stderr.become_file("/dev/full")
    with removed_at_the_end():
        set_up()
        logger.info("lost")
        hand_over()
    reader = stderr.become_pipe()
    set_up()
    logger.info("seen")
    assert drained(reader) == b"warning: 1 line was lost\ninfo: seen\n"
    assert "VHOST_BALLOON_LOST_LINES" not in os.environ


def test_a_bug_in_a_log_call_costs_its_line_and_is_reported(stderr: StandardError) -> None:
    reader = stderr.become_pipe()
    handler = set_up()
    handler.handle(logging.LogRecord("", logging.INFO, "", 0, "%d", ("no number",), None))
    logger.info("next")
    first, second = drained(reader).decode().splitlines()
    assert "1 line was lost because of an error: TypeError" in first
    assert second == "info: next"


def test_levels_are_syslogs() -> None:
    levels = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL]
    assert [priority(level) for level in [0, *levels, 99]] == [7, 7, 6, 4, 3, 2, 2]


def test_nothing_is_opened_but_what_is_needed(stderr: StandardError) -> None:
    """A pipe costs one descriptor, which no child inherits."""
    stderr.become_pipe()
    handler = LogHandler()
    assert not os.get_inheritable(handler.output.number)
    assert stat.S_ISFIFO(os.fstat(handler.output.number).st_mode)
    handler.close()
