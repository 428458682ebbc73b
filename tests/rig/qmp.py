"""A synchronous QMP client for QEMU and the daemon.

Unlike vhost-balloonctl's, it keeps events, for `wait_event`.
"""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.rig.errors import GuestError, QMPError, RigTimeout
from tests.rig.process import Closing

Message = Mapping[str, Any]
DEFAULT_SECONDS: Final = 30.0


class QMPClient(Closing):
    """One negotiated connection. Not thread-safe.

    Attributes:
        events: events not yet taken by `wait_event`, oldest first.
    """

    def __init__(self, path: Path | str, timeout: float = DEFAULT_SECONDS) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        self._next_id = 0
        self.events: deque[Message] = deque()
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self._read(time.monotonic() + timeout)  # the greeting
            self.execute("qmp_capabilities", timeout=timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
        self._socket.close()

    def execute(
        self, command: str, arguments: Message | None = None, *, timeout: float = DEFAULT_SECONDS
    ) -> Any:
        """Run a command and return its "return" value.

        Raises:
            QMPError: the server answered with an error.
            RigTimeout: no answer within timeout seconds.
            GuestError: the connection ended.
        """
        deadline = time.monotonic() + timeout
        self._next_id += 1
        request: dict[str, Any] = {"execute": command, "id": self._next_id}
        if arguments:
            request["arguments"] = arguments
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise GuestError(f"QMP connection lost before {command}: {error}") from error
        while True:
            answer = self._read(deadline)
            if "event" in answer:
                self.events.append(answer)
            elif answer.get("id") == self._next_id:
                return _returned(answer)

    def wait_event(
        self,
        name: str,
        *,
        timeout: float = DEFAULT_SECONDS,
        matching: Callable[[Message], bool] = lambda event: True,
    ) -> Message:
        """Take the first event of that name that matches, or wait for one.

        Raises:
            RigTimeout: none came within timeout seconds.
            GuestError: the connection ended.
        """
        deadline = time.monotonic() + timeout
        for event in self.events:
            if event["event"] == name and matching(event):
                self.events.remove(event)
                return event
        while True:
            event = self._read(deadline)
            if event.get("event") == name and matching(event):
                return event
            if "event" in event:
                self.events.append(event)

    def _read(self, deadline: float) -> Message:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise RigTimeout("no QMP message in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                raise GuestError(f"QMP connection lost: {error}") from error
            if not data:
                raise GuestError("QMP connection ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Message = json.loads(line)
        return message


def _returned(answer: Message) -> Any:
    if "error" in answer:
        raise QMPError(answer["error"]["class"], answer["error"]["desc"])
    return answer["return"]
