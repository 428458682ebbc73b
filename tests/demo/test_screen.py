"""The demo's output on terminals, in pipes and without a reader."""

from __future__ import annotations

import io
import os
import pty
import re
import termios
from collections.abc import Iterator
from typing import Self

import pytest

from vhost_balloon.demo.history import History, Mark, Sample
from vhost_balloon.demo.screen import Screen

MIB = 1 << 20


def history_of(seconds: int) -> History:
    samples = [Sample(tenth / 10, 3 * MIB, 4 * MIB) for tenth in range(seconds * 10 + 1)]
    return History("test", 8 * MIB, 10.0, samples, [Mark(0.0, "boot", "It boots.")])


def test_the_log_has_a_line_each_second_and_for_each_part() -> None:
    full, output = history_of(3), io.StringIO()
    history = History("test", 8 * MIB, 10.0, [], full.marks)
    screen = Screen(history, output)
    for sample in full.samples:
        history.samples.append(sample)
        if sample.time == 1.5:
            history.marks.append(Mark(1.5, "touch", "It touches."))
        screen.show()
    lines = output.getvalue().splitlines()
    assert [line[:16] for line in lines] == [
        "--- It boots.",
        "  0.0 s  boot   ",
        "  1.0 s  boot   ",
        "--- It touches.",
        "  1.5 s  touch  ",
        "  2.5 s  touch  ",
    ]
    assert "\x1b" not in output.getvalue()


def test_output_to_a_closed_pipe_is_discarded() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        screen = Screen(history_of(1), stream)
        screen.show()
        screen.write(["more"])
        stream.write("even this is harmless")


def test_without_standard_output_nothing_is_written() -> None:
    with Screen(history_of(1), None) as screen:
        screen.show()
        screen.write(["text"])


class Terminal:
    """A pseudo-terminal of 80 x 24 that this process writes to. A context manager."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self.stream = os.fdopen(slave, "w", encoding=encoding)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()
        os.close(self._master)

    def written(self) -> str:
        """Return everything written since the last call; one read returns only a part."""
        print(end="\0", file=self.stream, flush=True)
        data = b""
        while not data.endswith(b"\0"):
            data += os.read(self._master, 1 << 16)
        return data[:-1].decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Terminal() as terminal:
        yield terminal


def test_a_terminal_gets_frames_drawn_over_each_other(terminal: Terminal) -> None:
    with Screen(history_of(1), terminal.stream) as screen:
        assert terminal.written() == "\x1b[?25l", "the cursor is hidden"
        screen.show()
        first = terminal.written()
        assert first.count("\n") == 23
        assert "█" in first
        screen.show()
        assert terminal.written().startswith("\x1b[23A\r")
        termios.tcsetwinsize(terminal.stream.fileno(), (30, 100))
        screen.show()
        assert terminal.written().startswith("\x1b[H\x1b[2J"), "a resized terminal is cleared"
        screen.write(["the end"])
        assert terminal.written().endswith("the end\r\n")
    assert terminal.written() == "\x1b[?25h", "the cursor is back"


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_a_terminal_without_colours_gets_none(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    Screen(history_of(1), terminal.stream).show()
    written = terminal.written()
    assert "It boots" in written
    assert not re.search(r"\x1b\[\d+m", written)


def test_a_terminal_that_is_not_utf_8_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with Terminal("iso8859-1") as terminal:
        termios.tcsetwinsize(terminal.stream.fileno(), (0, 0))
        Screen(history_of(1), terminal.stream).show()
        written = terminal.written()
    assert written.isascii()
    assert written.count("\n") == 23, "80 x 24 is the default size"
