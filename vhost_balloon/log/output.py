"""Writes the log without ever waiting for its reader.

Lines go to standard error, or to systemd's journal if standard error leads there. A line that
cannot be written at once is lost and counted. Only the rest of a partly written line is queued, so
that no line is torn.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import signal
import socket
import stat
import sys
from collections.abc import Mapping
from typing import Final

import trio

from vhost_balloon.errors import OperatorError

STDOUT: Final = 1
STDERR: Final = 2
JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
PATIENCE: Final = 5.0
"""Seconds that the reader of --version and similar output may take for one piece."""

_FILLERS: Final = ((os.devnull, os.O_RDWR), ("/", os.O_PATH))
"""Replacements for a closed standard descriptor. The second always exists, and can be neither read
nor written."""
_TERMINAL_PIECE: Final = 1
"""Bytes that a terminal accepts for certain if it polls as writable."""
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4),
                      (logging.INFO, 6))  # fmt: skip


def prepare_descriptors() -> None:
    """Open 0, 1 and 2 if they are closed, so that no socket gets one of these numbers later."""
    # Do not be stopped by a terminal with "tostop" when writing from the background.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    for number in (0, STDOUT, STDERR):
        if _is_open(number):
            continue
        for path, flags in _FILLERS:
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(path, flags), True)  # gets the lowest free number
                break


def _is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def print_out(text: str) -> None:
    """Write to standard output. Raises OperatorError if that fails."""
    data = text.encode(errors="backslashreplace")
    try:
        while data:
            data = data[_put(STDOUT, data, _piece(STDOUT), PATIENCE) :]
    except OSError as error:
        raise OperatorError(f"cannot write to standard output: {error.strerror}") from None


def _piece(number: int) -> int:
    return _TERMINAL_PIECE if os.isatty(number) else select.PIPE_BUF


def _put(number: int, data: bytes, piece: int, patience: float = 0.0) -> int:
    """Write while the descriptor becomes writable within patience seconds; return the bytes
    written.

    A writable pipe has room for PIPE_BUF bytes. Raises OSError if nothing was written.
    """
    taken = 0
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    try:
        while taken < len(data):
            if not poll.poll(patience * 1000):
                raise BlockingIOError(errno.EAGAIN, "no reader")
            taken += os.write(number, data[taken : taken + piece])
    except OSError:
        if not taken:
            raise
    return taken


class Output:
    """Standard error as a destination for lines."""

    def __init__(self, number: int = STDERR) -> None:
        self.number = number
        """The descriptor to write to: if possible a non-blocking open file description of our own,
        because the inherited one shares its flags with other processes."""
        self.rest = b""
        """The part of the last line that is not written yet."""
        self._given = number
        self._socket: socket.socket | None = None
        self._piece: int | None = None
        mode = os.fstat(number).st_mode
        try:
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(number))
            elif stat.S_ISFIFO(mode) or os.isatty(number):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self.number = os.open(f"/proc/self/fd/{number}", flags)
        except OSError:  # another user's, no reader yet, or too few descriptors
            self._piece = _piece(number)

    def write(self, line: bytes) -> None:
        """Write a line, which ends in a newline. Raises OSError if it is lost."""
        self.flush()
        self.rest = line[self._taken(line) :]

    def flush(self) -> None:
        """Write the rest of the last line. Raises OSError if some of it remains."""
        if self.rest:
            self.rest = self.rest[self._taken(self.rest) :]
        if self.rest:
            raise BlockingIOError(errno.EAGAIN, "no reader")

    def close(self) -> None:
        """Close the descriptors opened here."""
        if self._socket is not None:
            self._socket.close()
        elif self.number != self._given:
            os.close(self.number)

    def _taken(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._piece is not None:
            return _put(self.number, data, self._piece)
        return os.write(self.number, data)  # a regular file, or non-blocking


class Journal:
    """systemd's journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(self, fields: Mapping[str, str]) -> None:
        """Send one entry. Raises OSError."""
        data = b"".join(map(_field, fields, fields.values()))
        # Not connected: each entry reaches the journal that runs at the time.
        self._socket.sendto(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, JOURNAL_SOCKET)

    def close(self) -> None:
        self._socket.close()


def _field(name: str, text: str) -> bytes:
    value = text.encode(errors="backslashreplace")
    if b"\n" in value:
        return b"%s\n%s%s\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
    return b"%s=%s\n" % (name.encode(), value)


def is_journal(number: int = STDERR) -> bool:
    """Whether a descriptor leads to the journal ($JOURNAL_STREAM, systemd.exec(5))."""
    info = os.fstat(number)
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"


def priority(level: int) -> int:
    """syslog(3)'s number for a logging level."""
    return next((number for least, number in _PRIORITIES if level >= least), 7)


class LogHandler(logging.Handler):
    """Writes each record completely or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Final = Output()
        self.losing = trio.Event()
        """Set while lines wait for a reader."""
        self.lost = 0
        self._why = ""
        self._encoding: Final = getattr(sys.stderr, "encoding", None) or "utf-8"
        self.journal: Final = Journal() if is_journal() else None

    def close(self) -> None:
        self.output.close()
        if self.journal is not None:
            self.journal.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._tell_lost()
            self._send(record)
        except Exception as error:  # a bug in a log call, too, costs only its line
            self.lost += 1
            self._why = _reason(error)
            self._wait_for_reader(isinstance(error, BlockingIOError))

    def flush(self) -> None:
        """Try again to write what is waiting."""
        self.acquire()
        try:
            self.output.flush()
            self._tell_lost()
            self.losing = trio.Event()
        except OSError:
            pass
        finally:
            self.release()

    def write_error(self, text: str) -> None:
        """Write one line to standard error without a format, with priority "error"."""
        # Not to the journal's socket: the journal cannot tell the unit of a process that has ended.
        with contextlib.suppress(OSError):
            self._write(text, priority(logging.ERROR))

    def _tell_lost(self) -> None:
        if self.lost:
            lines = "1 line was" if self.lost == 1 else f"{self.lost} lines were"
            text = f"{lines} lost{self._why}"
            self._send(logging.LogRecord("", logging.WARNING, "", 0, text, (), None))
            self.lost = 0

    def _send(self, record: logging.LogRecord) -> None:
        text, number = self.format(record), priority(record.levelno)
        if self.journal is not None:
            fields = {"MESSAGE": text, "PRIORITY": str(number),
                      "SYSLOG_IDENTIFIER": "vhost-balloon"}  # fmt: skip
            vm = getattr(record, "vm", None)
            if vm is not None:
                fields["VM"] = vm
            try:
                self.journal.send(fields)
            except OSError:  # the journal is unreachable, or its queue is full
                self._write(text, number)
        else:
            self._write(text, number)

    def _write(self, text: str, number: int) -> None:
        if self.journal is not None:  # each line becomes an entry (sd-daemon(3))
            text = "\n".join(f"<{number}>{line}" for line in text.split("\n"))
        self.output.write(f"{text}\n".encode(self._encoding, "backslashreplace"))
        self._wait_for_reader(bool(self.output.rest))

    def _wait_for_reader(self, waits: bool) -> None:
        if waits and trio.lowlevel.in_trio_task():
            self.losing.set()


def _reason(error: Exception) -> str:
    if isinstance(error, BlockingIOError):
        return " because nobody read the log"
    strerror = getattr(error, "strerror", None)
    return f" because of an error: {strerror or repr(error)}"
