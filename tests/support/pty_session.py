"""A program in a pseudo-terminal, as a person at a screen has it."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from types import TracebackType
from typing import Any, Final, Self

_END: Final = "\0"
_CODES: Final = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[78])")


def _as_a_shell_does() -> None:
    """Between fork and exec: the terminal is the session's, and Ctrl-C ends the program even if
    these tests run in the background of a script, where it is ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class PtySession:
    """One program, the leader of a session whose terminal is ours; killed at the end.

    Attributes:
        text: all that it wrote, control sequences included.
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
            preexec_fn=_as_a_shell_does,
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
        """Change the window's size; the program gets SIGWINCH from the kernel only as the
        foreground group of its terminal, so it is sent here."""
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
        """The frame in which wait_for() found its text, without control sequences.

        A frame begins at the top left corner. What it ends with is what a test waits for: a later
        one may have come only in part.
        """
        start = self.text.rfind("\x1b[H", 0, self._seen)
        frame = self.text[start:].removeprefix("\x1b[H").partition("\x1b[H")[0]
        return [line.rstrip() for line in _CODES.sub("", frame).replace("\r", "").split("\n")]

    def wait_for(self, text: str, seconds: float = 15) -> None:
        """Read until a text has come, behind what the last call has found."""
        deadline = time.monotonic() + seconds
        while (found := self.text.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"not within {seconds} s"
            self._read(0.1)
        self._seen = found + len(text)

    def wait(self, seconds: float = 10) -> int:
        """Read until it has ended; return its exit status."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"still there after {seconds} s"
            self._read(0.05)
        os.write(self._terminal, _END.encode())  # behind all that it wrote
        self.wait_for(_END)
        self.text = self.text.removesuffix(_END)
        return self._process.returncode

    def is_restored(self) -> bool:
        """Whether the terminal is as it was before the program."""
        found: list[Any] = termios.tcgetattr(self._terminal)
        return found == self.attributes

    def _read(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            self.text += self._decoder.decode(os.read(self._master, 65536))
