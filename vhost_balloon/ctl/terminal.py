"""Uses the terminal's whole screen, its keys and its signals, and always restores it.

Ctrl-C raises KeyboardInterrupt. SIGTERM and SIGHUP raise SystemExit, so that the terminal is
restored. Ctrl-Z restores it too, and `fg` redraws it.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Final

from vhost_balloon.ctl.errors import CtlError, ReaderGone
from vhost_balloon.ctl.output import Output

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # the alternate screen, no cursor, no wrapping
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"

_LONGEST: Final = 86400.0
"""Longest poll in seconds; poll() takes milliseconds as a C int."""

KEYS: Final = {
    b"\x1b[A": "k", b"\x1bOA": "k", b"\x1b[B": "j", b"\x1bOB": "j",
    b"\x1b[5~": "b", b"\x1b[6~": " ", b"\x1b[H": "g", b"\x1b[F": "G",
}  # fmt: skip
"""The sequences of cursor keys, and the letters with the same effect."""


class FullScreen:
    """Takes over the terminal. A context manager that restores it."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._input = _terminal_input()
        self._saved: list[Any] | None = None
        self._woken, self._wake = socket.socketpair()
        self._handlers: dict[signal.Signals, Any] = {}
        self._wakeup_fd = -1
        self._suspending = False

    def __enter__(self) -> FullScreen:
        try:
            self._enter()
        except BaseException:  # a signal may interrupt it halfway
            self._exit()
            raise
        return self

    def _enter(self) -> None:
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._wakeup_fd = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for number, handler in (
            (signal.SIGWINCH, _ignore),  # it only has to wake wait()
            (signal.SIGTSTP, self._note_suspend),
            (signal.SIGTERM, _end),
            (signal.SIGHUP, _end),
        ):
            self._handlers[number] = signal.signal(number, handler)
        self._take()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit()

    def _exit(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_fd)
        with contextlib.suppress(CtlError, ReaderGone):  # the terminal has gone
            self._give_back()
        self._woken.close()
        self._wake.close()

    def draw(self, lines: Iterable[str]) -> None:
        """Replace the screen's contents with these lines, at most as many as the screen has."""
        body = f"{_CLEAR_LINE}\r\n".join(lines)
        self._output.write(f"{_HOME}{body}{_CLEAR_LINE}{_CLEAR_BELOW}")

    def wait(self, seconds: float, also: int | None = None) -> str:
        """Wait for keys and return them as letters (see KEYS).

        Returns "" when the time has passed, the screen has to be redrawn, or the descriptor `also`
        is readable.
        """
        poll = select.poll()
        for source in (self._woken.fileno(), self._input, also):
            if source is not None:
                poll.register(source, select.POLLIN)
        readable = dict(poll.poll(math.ceil(min(max(seconds, 0), _LONGEST) * 1000)))
        if self._woken.fileno() in readable:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        if self._suspending:
            self._suspend()
            return ""
        if self._input not in readable or self._input is None:
            return ""
        try:
            data = os.read(self._input, 1024)
        except OSError:
            data = b""
        if not data:
            self._input = None  # hung up
        return decode_keys(data)

    def _take(self) -> None:
        if self._input is not None:
            self._saved = termios.tcgetattr(self._input)
            tty.setcbreak(self._input, termios.TCSADRAIN)
        self._output.write(_ENTER)

    def _give_back(self) -> None:
        if self._input is not None and self._saved is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._saved)
        self._output.write(_LEAVE)

    def _note_suspend(self, number: int, frame: FrameType | None) -> None:
        """Only set a flag: the signal may have interrupted a write, which is not reentrant."""
        self._suspending = True

    def _suspend(self) -> None:
        self._suspending = False
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # returns after SIGCONT
        signal.signal(signal.SIGTSTP, self._note_suspend)
        self._take()


def decode_keys(data: bytes) -> str:
    """Return one letter for each known key."""
    keys = ""
    while data:
        sequence = next((known for known in KEYS if data.startswith(known)), data[:1])
        keys += KEYS.get(sequence) or (chr(sequence[0]) if 32 <= sequence[0] < 127 else "")
        data = data[len(sequence) :]
    return keys


def _terminal_input() -> int | None:
    """Return standard input's descriptor if it is a terminal."""
    return sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
