"""The channel for the back end's own requests to the front end (SET_BACKEND_REQ_FD)."""

from __future__ import annotations

import socket
from typing import Final

from protocol.vhost_user import HEADER, VERSION
from vhost_balloon.errors import FrontEndError
from vhost_balloon.fds import OwnedFd

_SEND_FLAGS: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


class BackendChannel:
    """Sends requests without waiting for replies.

    The socket's file description is shared with the front end, so its flags are left alone.
    Raises FrontEndError if the descriptor is no socket.
    """

    def __init__(self, fd: OwnedFd) -> None:
        try:
            self._sock = socket.socket(fileno=fd.fileno())
        except OSError:
            raise FrontEndError("descriptor is not a socket") from None
        self.fd: Final = fd

    def send(self, request: int) -> bool:
        """Send a request without payload.

        Returns False if the front end has closed its end. A full socket counts as success: the
        front end has unread requests already.
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
