"""Notifies the service manager: readiness, status, descriptors to store, watchdog.

Implements sd_notify(3) without its library. Nothing here blocks the event loop; without a service
manager, nothing is sent.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import time
from collections.abc import Sequence
from typing import Final

import trio

from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.printable import printable

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
WATCHDOG: Final = "WATCHDOG=1"

RETRY_PAUSE: Final = 0.01
"""Seconds between two attempts that wait for no event."""

_MAX_NAME: Final = 255
_AGAIN_LATER: Final = {errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}


def status(text: str) -> str:
    """A line for `systemctl status`."""
    return f"STATUS={printable(text)}"


def reloading() -> str:
    """To be followed by READY; for Type=notify-reload as well."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def fdstore(name: str) -> str:
    """Store the descriptors that come with this message under name, whatever their peers do."""
    # Without FDPOLL=0 systemd drops a socket once its other end is closed.
    return f"FDSTORE=1\nFDNAME={_checked(name)}\nFDPOLL=0"


def fdstore_remove(name: str) -> str:
    """Drop all descriptors of that name."""
    return f"FDSTOREREMOVE=1\nFDNAME={_checked(name)}"


def _checked(name: str) -> str:
    """Raise ValueError for a name that systemd would not keep (fdname_is_valid)."""
    if not 0 < len(name) <= _MAX_NAME or any(not " " <= c <= "~" or c == ":" for c in name):
        raise ValueError(f"{name!r} cannot be a descriptor's name")
    return name


class Notifier:
    """Sends messages to the service manager, if there is one.

    NOTIFY_SOCKET and the other variables stay in the environment: a daemon that re-executes itself
    in place needs them again, and it has no children that they could mislead. An address that
    cannot be used counts as none.
    """

    def __init__(self, address: str | None = None) -> None:
        """address: replaces $NOTIFY_SOCKET; "" for none."""
        found = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._socket = _connected(found) if found else None
        self._lock = trio.Lock()
        self._failing = False
        self._waiting = False
        self._watchdog_due = False

    def __bool__(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def close(self) -> None:
        """Stop sending; may be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def send(self, text: str, fds: Sequence[OwnedFd] = ()) -> bool:
        """Send one message, after all earlier ones; return whether it was accepted.

        The caller still owns the descriptors.
        """
        async with self._lock:
            while True:
                try:
                    return self._send(text, fds)
                except BlockingIOError:
                    assert self._socket is not None
                    # Connected, it polls as writable once the receiver's queue has room.
                    await trio.lowlevel.wait_writable(self._socket)
                except OSError as error:
                    # Too many descriptors in flight: systemd has to receive some first.
                    if not self._waiting:
                        logger.warning("waiting for the service manager: %s", error.strerror)
                    self._waiting = True
                    await trio.sleep(RETRY_PAUSE)

    def try_send(self, text: str) -> bool:
        """Send without waiting; return whether it was accepted. Does not overtake a waiting
        send()."""
        if self._lock.locked():
            return False
        try:
            return self._send(text, ())
        except OSError:
            return False

    async def feed_watchdog(self, interval: float) -> None:
        """Send a keep-alive every interval seconds; does not return."""
        while True:
            # It may overtake: a queue of messages that moves slowly is not a hanging event loop.
            # If the queue is full, the next message carries the keep-alive. While another process
            # fills the queue, it has room for moments only: hence many attempts.
            self._watchdog_due = True
            try:
                pause = interval if self._send(WATCHDOG, ()) else interval / 10
            except OSError:
                pause = RETRY_PAUSE
            await trio.sleep(pause)

    def _send(self, text: str, fds: Sequence[OwnedFd]) -> bool:
        """Raises OSError if a later attempt may succeed; any other failure is logged once."""
        if self._socket is None:
            return False
        if self._watchdog_due and text != WATCHDOG:
            text = f"{text}\n{WATCHDOG}"
        numbers = array.array("i", [fd.fileno() for fd in fds])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if fds else []
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        try:
            self._socket.sendmsg([text.encode()], ancillary, flags)
        except OSError as error:
            if isinstance(error, BlockingIOError) or error.errno in _AGAIN_LATER:
                raise
            if not self._failing:
                logger.warning("cannot notify the service manager: %s", error.strerror)
            self._failing = True
            return False
        self._failing = self._watchdog_due = False
        return True


def _connected(address: str) -> socket.socket | None:
    """None, and a warning, for an address that cannot be used: vsock, or no listener."""
    if address[0] not in "/@":
        logger.warning("NOTIFY_SOCKET=%s is ignored: not a path or abstract address", address)
        return None
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        logger.warning("cannot notify the service manager: %s", error.strerror)
        return None
    try:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
    except (OSError, ValueError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        logger.warning("NOTIFY_SOCKET=%s is ignored: %s", address, reason)
        return None
    return sock
