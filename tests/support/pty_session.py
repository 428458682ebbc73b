"""Runs a program on a pseudo-terminal."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from types import TracebackType
from typing import Any, Final, Self

from tests.support.helpers import readable

_END: Final = "\0"
_CODES: Final = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[78])")


def _take_terminal() -> None:
    """Between fork and exec, make the terminal the session's, and reset SIGINT, which is ignored if
    the tests run in the background of a script."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class PtySession:
    """One program, which leads a session on our terminal. It is killed at the end.

    Attributes:
        text: its whole output, with control sequences.
    """

    def __init__(self, *command: str, columns: int = 100, rows: int = 20, **environment: str):
        self.text = ""
        self._seen = 0
        # A read may end in the middle of a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._master, self._terminal = pty.openpty()
        self.resize(columns, rows, tell=False)
        self.attributes: list[Any] = termios.tcgetattr(self._terminal)
        base = {"TERM": "xterm", "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
        self._process = subprocess.Popen(
            command,
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env=base | environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        if value is not None:
            value.add_note(f"--- terminal\n{self.text[-4000:]!r}")
        os.close(self._master)
        os.close(self._terminal)

    def resize(self, columns: int, rows: int, *, tell: bool = True) -> None:
        """Change the window's size, and send SIGWINCH: the kernel sends it only to the terminal's
        foreground group."""
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)
        if tell:
            self.signal(signal.SIGWINCH)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def type(self, keys: str) -> None:
        """Press keys; "\\x03" is Ctrl-C."""
        os.write(self._master, keys.encode())

    def screen(self) -> list[str]:
        """Return the frame in which wait_for() found its text, without control sequences.

        A frame begins at the top left corner. Wait for the text at its end: a later frame may be
        incomplete.
        """
        start = self.text.rfind("\x1b[H", 0, self._seen)
        frame = self.text[start:].removeprefix("\x1b[H").partition("\x1b[H")[0]
        return [line.rstrip() for line in _CODES.sub("", frame).replace("\r", "").split("\n")]

    def wait_for(self, text: str, seconds: float = 15) -> None:
        """Read until the text appears after that of the last call."""
        deadline = time.monotonic() + seconds
        while (found := self.text.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"no {text!r} within {seconds} s"
            self._read(0.1)
        self._seen = found + len(text)

    def wait(self, seconds: float = 10) -> int:
        """Read until the program ends; return its exit status."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"still running after {seconds} s"
            self._read(0.05)
        os.write(self._terminal, _END.encode())  # marks the end of its output
        self.wait_for(_END)
        self.text = self.text.removesuffix(_END)
        return self._process.returncode

    def is_restored(self) -> bool:
        """Return whether the terminal has the attributes that it had before the program."""
        found: list[Any] = termios.tcgetattr(self._terminal)
        return found == self.attributes

    def _read(self, seconds: float) -> None:
        if readable(self._master, seconds):
            self.text += self._decoder.decode(os.read(self._master, 65536))
