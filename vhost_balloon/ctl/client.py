"""One connection to the control socket: QMP on a plain blocking socket, with time limits."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

from vhost_balloon.ctl.errors import CtlError, ServerError

ANSWER_SECONDS: Final = 10.0
"""The daemon answers in milliseconds; one that takes this long is stopped or hangs."""

MAX_MESSAGE: Final = 64 << 20
"""Bytes: a VM takes some 2 KiB of query-vms. A server that sends more on one line speaks no QMP."""


class Client:
    """A negotiated connection; a context manager, which closes it. All methods raise CtlError."""

    def __init__(self, path: str, seconds: float = ANSWER_SECONDS) -> None:
        self.path = path
        self.seconds = seconds
        self._received = bytearray()
        self._socket = _connect(path, seconds)
        try:
            greeting = self._read(time.monotonic() + seconds)
            if not isinstance(greeting.get("QMP"), dict):
                raise self._no_qmp()
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, patience: float = 0
    ) -> Any:
        """The "return" of a command, which the daemon may take patience seconds longer for.

        Raises ServerError if it refuses. Events that come meanwhile are left.
        """
        deadline = time.monotonic() + self.seconds + patience
        request = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._send(json.dumps(request).encode("ascii") + b"\n", deadline)
        while True:
            reply = self._read(deadline)
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise self._refused(reply["error"])
            if "event" not in reply:
                raise self._no_qmp()

    def wait_end(self, seconds: float) -> None:
        """Wait until the daemon has closed this connection."""
        deadline = time.monotonic() + seconds
        try:
            self._socket.settimeout(self._left(deadline))
            while self._socket.recv(1 << 16):
                self._socket.settimeout(self._left(deadline))
        except TimeoutError:
            raise CtlError(f"the daemon on {self.path} goes on as it is") from None
        except OSError:
            pass

    def _refused(self, error: Any) -> CtlError:
        if not isinstance(error, dict) or not isinstance(error.get("desc"), str):
            return self._no_qmp()
        text, error_class = error["desc"], str(error.get("class"))
        if error_class == "CommandNotFound":
            text += f": is {self.path} the control socket of vhost-balloon, of this version?"
        return ServerError(text, error_class)

    def _send(self, data: bytes, deadline: float) -> None:
        try:
            self._socket.settimeout(self._left(deadline))
            self._socket.sendall(data)
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            raise self._gone() from None

    def _read(self, deadline: float) -> dict[str, Any]:
        """The next message, however it comes in pieces."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > MAX_MESSAGE:
                raise self._no_qmp()
            self._received += self._receive(deadline)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise self._no_qmp() from None
        if not isinstance(message, dict):
            raise self._no_qmp()
        return message

    def _receive(self, deadline: float) -> bytes:
        try:
            self._socket.settimeout(self._left(deadline))
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            raise self._gone() from None
        if not data:
            raise self._gone()
        return data

    def _left(self, deadline: float) -> float:
        """Seconds until then. Raises TimeoutError if it is over: also for one who drips."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _silent(self) -> CtlError:
        return CtlError(f"no answer from {self.path} within {self.seconds:g} s")

    def _gone(self) -> CtlError:
        return CtlError(f"the daemon on {self.path} closed the connection")

    def _no_qmp(self) -> CtlError:
        return CtlError(f"{self.path} does not speak QMP: it is no control socket")


def _connect(path: str, seconds: float) -> socket.socket:
    """Raises CtlError. A listener that never accepts counts as one that never answers."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A timeout of Python's would make connect() fail at once where the backlog is full.
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.connect(path)
    except BlockingIOError:
        problem = f"no answer from {path} within {seconds:g} s"
    except FileNotFoundError:
        problem = f"there is no {path}: is vhost-balloon running, with this --control-socket?"
    except ConnectionRefusedError:
        problem = f"cannot connect to {path}: nobody listens on it"
    except OSError as error:
        problem = f"cannot connect to {path}: {error.strerror or error}"
    else:
        return sock
    sock.close()
    raise CtlError(problem)
