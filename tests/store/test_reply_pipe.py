"""The reply pipe tells whether a reply was sent, whenever the process dies."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from vhost_balloon.fds import OwnedFd
from vhost_balloon.store.journal import Journal, Phase
from vhost_balloon.store.reply_pipe import ReplyPipe, make_pipe

REPLY = b"a reply of 20 bytes."


class Killed(Exception):
    """Stands for the death of the process."""


class Connection:
    """A front end's socket, the pipe, and a journal whose request has been handled."""

    def __init__(self) -> None:
        self.front_end, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.front_end.setblocking(False)
        self.file = bytearray(4096)
        self.journal = Journal(memoryview(self.file))
        self.pipe = ReplyPipe(make_pipe())
        self.journal.begin(b"request")
        self.journal.taken()
        self.journal.done(REPLY)

    def send(self) -> int:
        return self.pipe.send(self.sock.fileno(), REPLY, self.journal)

    def restart(self) -> Phase:
        """Settle as the next process does; return the phase that it continues from."""
        self.pipe = ReplyPipe(OwnedFd(os.dup(self.pipe.fd.fileno())))
        self.journal = Journal(memoryview(self.file))
        self.pipe.settle(self.journal)
        return self.phase()

    def phase(self) -> Phase:
        entry = self.journal.latest()
        assert entry is not None
        assert entry.reply == REPLY
        return entry.phase

    def received(self) -> bytes:
        data = b""
        with suppress(BlockingIOError):
            while part := self.front_end.recv(4096):
                data += part
        return data

    def fill(self) -> int:
        """Fill the socket; return the bytes sent."""
        size = 0
        try:
            while True:
                size += self.sock.send(bytes(65536))
        except BlockingIOError:
            return size


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    connection.pipe.close()
    connection.sock.close()
    connection.front_end.close()


def test_a_sent_reply_is_known_to_be_sent(connection: Connection) -> None:
    assert connection.send() == len(REPLY)
    assert connection.received() == REPLY
    assert connection.restart() is Phase.SENT
    assert not connection.pipe.unsent


@pytest.mark.parametrize(
    ("point", "arrives", "found"),
    [("sending", False, Phase.DONE), ("splice", False, Phase.DONE), ("sent", True, Phase.SENT)],
)
def test_killed_while_sending(
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    arrives: bool,
    found: Phase,
) -> None:
    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os if point == "splice" else Journal, point, killed)
        with pytest.raises(Killed):
            connection.send()
    assert connection.restart() is found
    assert connection.restart() is found, "the next process may die as well"
    connection.pipe.empty()
    assert connection.restart() is found
    assert connection.received() == (REPLY if arrives else b"")


def test_a_full_socket_takes_nothing_and_the_reply_is_unsent(connection: Connection) -> None:
    filled = connection.fill()
    assert connection.send() == 0
    assert not connection.pipe.unsent
    assert connection.restart() is Phase.DONE
    while filled > 0:
        filled -= len(connection.front_end.recv(65536))
    assert connection.send() == len(REPLY)
    assert connection.received() == REPLY


def test_a_closed_peer_leaves_nothing_in_the_pipe(connection: Connection) -> None:
    connection.front_end.close()
    with pytest.raises(ConnectionError):
        connection.send()
    assert not connection.pipe.unsent


def test_a_settled_request_is_left_alone(connection: Connection) -> None:
    """Another connection's reply is in the pipe."""
    os.write(connection.pipe.fd.fileno(), b"another's")
    assert connection.restart() is Phase.DONE
    connection.journal.sent()
    assert connection.restart() is Phase.SENT
