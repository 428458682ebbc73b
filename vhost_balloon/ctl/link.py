"""One connection to a control socket: QMP over a non-blocking socket.

A guest may have compromised its daemon. So the size of an answer is bounded, and nothing that a
daemon sends affects another connection. QEMU's own client, qemu.qmp, would add 30 ms and 8 MiB to
each start of the tool.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from vhost_balloon.ctl.errors import Absent, CtlError, ServerError

MAX_ANSWER: Final = 1 << 20
"""Bytes that a daemon may send until it has answered a command, events included. The answer to
query-vms takes about 2 KiB."""

_MAX_TEXT: Final = 500
"""Characters kept of a daemon's error."""

_MAX_ADDRESS: Final = 107
"""Bytes of a Unix socket's address. Paths may be longer, for example in a container's folder."""

_PIECE: Final = 16 << 10
"""Bytes read at a time, so that a daemon that sends without end does not delay the others."""


class Link:
    """A connection that is opened and negotiated with the first command.

    Attributes:
        path: the socket's path.
        problem: why the connection was closed, or a ServerError, which leaves it open.
    """

    def __init__(self, path: str, most: int = MAX_ANSWER) -> None:
        """most: bytes that may come until a command is answered."""
        self.path = path
        self._most = most
        self._answers: list[Any] = []
        self.problem: CtlError | None = None
        self._socket: socket.socket | None = None
        self._outgoing = bytearray()
        self._received = bytearray()
        self._searched = 0
        self._greeted = False
        self._unanswered = 0
        self._budget = most
        self._send("qmp_capabilities", None)

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Queue a command for the next advance()."""
        if self.problem is None:
            self._budget = self._most
            self._send(command, arguments)

    def expect_end(self) -> None:
        """Keep waiting until the daemon closes the connection."""
        self._unanswered += 1

    def take(self) -> list[Any]:
        """Return and forget the "return" values received so far, that of qmp_capabilities included.

        Raises CtlError if there is a problem.
        """
        problem, answers = self.problem, self._answers
        self._answers = []
        if problem is None:
            return answers
        if isinstance(problem, ServerError):
            self.problem = None
        raise problem

    @property
    def waits(self) -> bool:
        """Whether answers are outstanding."""
        return self._unanswered > 0

    @property
    def interest(self) -> int:
        """The epoll events to wait for."""
        return select.EPOLLIN | (select.EPOLLOUT if self._outgoing else 0)

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 while it is not connected."""
        return -1 if self._socket is None else self._socket.fileno()

    def advance(self) -> None:
        """Connect, send and receive as far as possible without blocking."""
        try:
            if self._socket is None:
                self._connect()
            if self._socket is not None:
                self._exchange(self._socket)
        except CtlError as problem:
            self.fail(problem)

    def fail(self, problem: CtlError) -> None:
        """Close the connection because of this problem."""
        self.close()
        self.problem = problem
        self._unanswered = 0

    def close(self) -> None:
        """Close the connection; may be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, command: str, arguments: Mapping[str, Any] | None) -> None:
        request = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._outgoing += json.dumps(request).encode("ascii") + b"\n"
        self._unanswered += 1

    def _connect(self) -> None:
        """Connect, or leave it for the next advance() if the backlog is full. Raises CtlError."""
        sock = None
        problem: CtlError | None = None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            with _address(self.path) as address:
                sock.connect(address)
        except BlockingIOError:
            pass
        except FileNotFoundError:
            problem = Absent("no such socket: is vhost-balloon running?")
        except ConnectionRefusedError:
            problem = Absent("cannot connect: nothing listens on it")
        except OSError as error:
            problem = CtlError(f"cannot connect: {error.strerror or error}")
        else:
            self._socket = sock
            return
        if sock is not None:
            sock.close()
        if problem is not None:
            raise problem

    def _exchange(self, sock: socket.socket) -> None:
        try:
            if self._outgoing:
                del self._outgoing[: sock.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()  # there may still be data to read
        try:
            data = sock.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise CtlError("the daemon closed the connection")
        self._take_in(data)

    def _take_in(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\n", self._searched)) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            self._searched = 0
            self._handle(_parse(line))
        self._searched = len(self._received)
        self._budget -= len(data)
        if self._budget <= 0 and self.waits:
            raise CtlError(f"it sent {self._most >> 20} MiB without answering")

    def _handle(self, message: dict[str, Any]) -> None:
        if not self._greeted:
            if not isinstance(message.get("QMP"), dict):
                raise _no_qmp()
            self._greeted = True
        elif "event" in message:
            pass
        elif not self.waits:
            raise _no_qmp()
        elif "return" in message:
            self._unanswered -= 1
            self._answers.append(message["return"])
        else:
            self.problem = self.problem or _refusal(message.get("error"))
            self._unanswered -= 1


@contextmanager
def _address(path: str) -> Iterator[str]:
    """An address of the socket at path, however long the path is. Raises OSError."""
    if len(os.fsencode(path)) <= _MAX_ADDRESS:
        yield path
        return
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _parse(line: bytes) -> dict[str, Any]:
    """Return the message. Raises CtlError if the line is not a JSON object."""
    try:
        message = json.loads(line, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise _no_qmp() from None
    if not isinstance(message, dict):
        raise _no_qmp()
    return message


def _finite(text: str) -> float:
    """Raises ValueError for Infinity, NaN and numbers beyond a float, which JSON does not have."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _refusal(error: Any) -> CtlError:
    """Return the daemon's error. Raises CtlError if it is malformed."""
    if not isinstance(error, dict) or not isinstance(error.get("desc"), str):
        raise _no_qmp()
    text, error_class = error["desc"][:_MAX_TEXT], str(error.get("class"))
    if error_class == "CommandNotFound":
        text += ": is this a control socket of vhost-balloon, and of this version?"
    return ServerError(text, error_class)


def _no_qmp() -> CtlError:
    return CtlError("does not speak QMP: not a control socket")
