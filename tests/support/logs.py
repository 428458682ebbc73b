"""Helpers of the log's tests: standard error and the journal."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeAlias

from tests.support.helpers import readable
from vhost_balloon.log.output import LogHandler

Entry: TypeAlias = dict[str, bytes]


@contextmanager
def removed_at_the_end() -> Iterator[None]:
    """Undo what log.setup does."""
    level = logging.root.level
    yield
    for handler in logging.root.handlers[:]:
        if isinstance(handler, LogHandler):
            logging.root.removeHandler(handler)
            handler.close()
    logging.root.setLevel(level)


class StandardError:
    """Descriptor 2 as something else for a while; a context manager, which restores it."""

    def __init__(self) -> None:
        self._saved = os.dup(2)
        self._opened: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.environ.pop("JOURNAL_STREAM", None)
        os.dup2(self._saved, 2)
        os.close(self._saved)
        for number in self._opened:
            os.close(number)

    def become_pipe(self) -> int:
        """Returns its read end."""
        reader, writer = os.pipe()
        self._become(writer)
        self._opened.append(reader)
        return reader

    def become_file(self, path: str, flags: int = os.O_WRONLY) -> None:
        self._become(os.open(path, flags))

    def _become(self, number: int) -> None:
        os.dup2(number, 2)
        os.close(number)


class FakeJournal:
    """systemd-journald's two ends: a socket for entries, and a stream for standard error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader, self.stream = socket.socketpair()
        self._bind()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self.socket, self._reader, self.stream):
            sock.close()

    @property
    def reader(self) -> int:
        return self._reader.fileno()

    def become_stderr(self) -> None:
        """Have descriptor 2 lead here, and $JOURNAL_STREAM say so; a StandardError ends it."""
        os.dup2(self.stream.fileno(), 2)
        info = os.fstat(2)
        os.environ["JOURNAL_STREAM"] = f"{info.st_dev}:{info.st_ino}"

    def restart(self) -> None:
        self.socket.close()
        self.path.unlink()
        self._bind()

    def entries(self) -> list[Entry]:
        """Return the entries since the last call."""
        found = []
        while True:
            try:
                found.append(self.parsed(self.socket.recv(1 << 20)))
            except BlockingIOError:
                return found

    @staticmethod
    def parsed(data: bytes) -> Entry:
        """An entry as systemd.io/JOURNAL_NATIVE_PROTOCOL describes it."""
        fields: Entry = {}
        while data:
            line, _, data = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                size = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + size], data[8 + size :]
                assert data[:1] == b"\n"
                data = data[1:]
            assert name.decode() not in fields
            fields[name.decode()] = value
        return fields

    def _bind(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.setblocking(False)


def drained(number: int) -> bytes:
    """Everything that can be read now."""
    data = b""
    while readable(number) and (more := os.read(number, 1 << 16)):
        data += more
    return data
