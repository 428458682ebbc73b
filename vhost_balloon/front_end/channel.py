"""The channel for requests of ours to the front end (SET_BACKEND_REQ_FD)."""

from __future__ import annotations

import socket
from typing import Final

from protocol.vhost_user import HEADER, VERSION
from vhost_balloon.errors import FrontEndError
from vhost_balloon.fds import OwnedFd

_SEND_FLAGS: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


class BackendChannel:
    """The socket for requests of ours to the front end.

    Its file description is the front end's too, so it stays as it is, blocking or not.
    Raises FrontEndError if the descriptor is no socket.
    """

    def __init__(self, fd: OwnedFd) -> None:
        try:
            self._sock = socket.socket(fileno=fd.fileno())
        except OSError:
            raise FrontEndError("descriptor is not a socket") from None
        self.fd: Final = fd

    def send(self, request: int) -> bool:
        """Send a request without payload and without waiting for an answer.

        True if the front end has it, or has at least as many requests waiting there unread as
        the socket holds; False if it has closed its end.
        """
        message = HEADER.pack(request, VERSION, 0)
        try:
            self._sock.send(message, _SEND_FLAGS)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._sock.detach()
        self.fd.close()
