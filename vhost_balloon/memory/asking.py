"""Asks the examiner whether a process has memory pinned. It may be absent, late, dead or hung."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from protocol import examiner as wire
from vhost_balloon.memory.pins import PinState

PATIENCE: Final = 0.1
"""Most seconds to wait for an answer, which usually takes less than a millisecond. A question that
was not answered by then is not waited for again, and the next one for a quarter of the time, but
LEAST_PATIENCE: an examiner that hangs costs this once."""
LEAST_PATIENCE: Final = 0.002

KEPT: Final = 3.0
"""Seconds after a question for which its answer counts, if no newer one comes."""

START_SECONDS: Final = 2.0
"""How long the examiner may take for its first answer, for which systemd may have to start it."""

_STATES: Final = {
    wire.FREE: PinState.FREE,
    wire.PINNED: PinState.PINNED,
    wire.UNKNOWN: PinState.UNKNOWN,
}
_ABSENT: Final = "no examiner looks on its behalf"
_LATE: Final = "the examiner (vhost-balloon-examiner) has not answered yet"


Found: TypeAlias = tuple[PinState, str]


class _Asked(NamedTuple):
    """A question. at: when it was asked."""

    pid: int
    memory_size: int
    at: float


class Examiner:
    """A connection to the examiner at path, opened when it is needed, and again after it broke.

    At most one question is open at a time. trouble: why there is no answer.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._open: _Asked | None = None
        self._answered: _Asked | None = None
        self._found: Found = (PinState.UNKNOWN, "")
        self._patience = PATIENCE
        self.trouble = _ABSENT

    def is_absent(self) -> bool:
        """Whether nobody listened when it was asked last."""
        return self.trouble == _ABSENT

    def is_late(self) -> bool:
        """Whether a question is open."""
        return self._open is not None

    def is_starting(self, now: float) -> bool:
        """Whether the first answer may still come."""
        first = self._open if self._answered is None else None
        return first is not None and now - first.at < START_SECONDS

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._open, self._buffer = None, None, b""

    def ask(self, pid: int, memory_size: int, now: float, every: float) -> Found | None:
        """The state, and why if it is UNKNOWN; None without an answer that still counts.

        Asks if the last answer is as old as every seconds or is about something else. Waits for
        PATIENCE seconds at most, and not at all while an earlier question is open. now: the
        monotonic clock in seconds.
        """
        with self._reporting():
            self._receive(0)
        if self._open is None and not self._knows(pid, memory_size, now, every):
            with self._reporting():
                self._send(_Asked(pid, memory_size, now))
                self._receive(self._patience)
                self._patience = max(self._patience / 4, LEAST_PATIENCE) if self._open else PATIENCE
        return self._found if self._knows(pid, memory_size, now, KEPT) else None

    def _knows(self, pid: int, memory_size: int, now: float, seconds: float) -> bool:
        """Whether there is an answer about this that is younger than so many seconds."""
        last = self._answered
        return last is not None and last[:2] == (pid, memory_size) and now - last.at < seconds

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Close the connection after a failure, and keep the reason as trouble."""
        try:
            yield
        except OSError as error:
            self.close()
            self.trouble = _ABSENT
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                self.trouble = f"the examiner cannot be asked: {error.strerror or error}"
        except ValueError as error:
            self.close()
            self.trouble = f"the examiner answers nonsense: {error}"
        else:
            self.trouble = _LATE

    def _send(self, asked: _Asked) -> None:
        """Raises OSError."""
        line = wire.question(asked.pid, asked.memory_size)
        if self._socket is not None:
            try:
                self._socket.send(line)
            except OSError:  # it ended
                self.close()
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            self._socket.connect(self._path)
            self._socket.send(line)
        self._open = asked

    def _receive(self, seconds: float) -> None:
        """Wait that long for the answer to the open question, if there is one.

        Raises OSError or ValueError.
        """
        end = time.monotonic() + seconds
        while self._socket is not None and self._open is not None:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(max(end - time.monotonic(), 0) * 1000):
                return
            data = self._socket.recv(wire.MAX_ANSWER)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "it closed the connection")
            self._buffer += data
            if b"\n" in self._buffer or len(self._buffer) >= wire.MAX_ANSWER:
                word, reason = wire.read_answer(self._buffer)
                self._found = _STATES[word], reason
                self._answered, self._open, self._buffer = self._open, None, b""
