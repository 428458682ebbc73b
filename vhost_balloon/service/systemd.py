"""The service manager's side: descriptors handed over, notifications, the watchdog.

sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3), without their library. Nothing here ever
blocks the event loop, and where no service manager is, all of it is silent.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio

from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.printable import printable

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
WATCHDOG: Final = "WATCHDOG=1"

FIRST_FD: Final = 3
MAX_HANDED: Final = 1 << 20
"""Descriptors that a process can have (fs.nr_open)."""
UNNAMED: Final = "unknown"
"""systemd's name for a descriptor that has none."""
RETRY_PAUSE: Final = 0.01
"""Seconds to wait where the kernel cannot tell when to try again."""

_MAX_NAME: Final = 255
_AGAIN_LATER: Final = {errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}


def inherited() -> list[tuple[str, OwnedFd]]:
    """The descriptors that were handed over, with their names, in order; once per process.

    The variables are dropped and the descriptors are not passed on to children.
    Raises OperatorError if the variables make no sense.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    given = {name: os.environ.pop(name, "") for name in names}
    # They may have been meant for a parent of ours that did not drop them.
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"]:
        return []
    count = _number(given, "LISTEN_FDS")
    if count > MAX_HANDED:
        raise OperatorError(f"LISTEN_FDS={count} in the environment: {MAX_HANDED} at most")
    listed = given["LISTEN_FDNAMES"].split(":") if given["LISTEN_FDNAMES"] else [UNNAMED] * count
    if len(listed) != count:
        raise OperatorError(f"LISTEN_FDNAMES has {len(listed)} names for {count} descriptors")
    for fd in range(FIRST_FD, FIRST_FD + count):
        _close_on_exec(fd)
    return [(name, OwnedFd(fd)) for fd, name in enumerate(listed, FIRST_FD)]


def _close_on_exec(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    except OSError as error:
        raise OperatorError(f"LISTEN_FDS: descriptor {fd}: {error.strerror}") from None


def fdstore_limit() -> int:
    """Descriptors that the service manager keeps for us; 0: none ($FDSTORE, systemd >= 254)."""
    return _wish("FDSTORE")


def watchdog_interval() -> float | None:
    """Seconds between two signs of life, half of what is allowed; None: no watchdog."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return _wish("WATCHDOG_USEC") / 2e6 or None


def _wish(name: str) -> int:
    """A number that can be done without."""
    try:
        return _number(os.environ, name)
    except OperatorError as error:
        logger.warning("%s", error)
        return 0


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name) or "0"
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise OperatorError(f"{name}={text} in the environment is no number")
    return int(text)


def status(text: str) -> str:
    """A line for `systemctl status`."""
    return f"STATUS={printable(text)}"


def reloading() -> str:
    """To be followed by READY, with Type=notify-reload as well."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def fdstore(name: str) -> str:
    """Goes with descriptors that are to be kept under a name, whatever becomes of their peers."""
    # Without FDPOLL=0 a socket whose other end is closed would be dropped by itself.
    return f"FDSTORE=1\nFDNAME={_checked(name)}\nFDPOLL=0"


def fdstore_remove(name: str) -> str:
    """All descriptors of that name go."""
    return f"FDSTOREREMOVE=1\nFDNAME={_checked(name)}"


def _checked(name: str) -> str:
    """systemd drops what is stored under another name than these (fdname_is_valid)."""
    if not 0 < len(name) <= _MAX_NAME or any(not " " <= c <= "~" or c == ":" for c in name):
        raise ValueError(f"{name!r} cannot be a descriptor's name")
    return name


class Notifier:
    """Tells the service manager, if there is one.

    NOTIFY_SOCKET and the other variables stay in the environment: a daemon that re-executes itself
    in place needs them again, and it has no children that could be misled by them. An address that
    cannot be used is as good as none.
    """

    def __init__(self, address: str | None = None) -> None:
        """Address: where to, instead of $NOTIFY_SOCKET; "" for nowhere."""
        found = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._socket = _connected(found) if found else None
        self._lock = trio.Lock()
        self._failing = False
        self._waiting = False
        self._watchdog_due = False

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return self._socket is not None

    def close(self) -> None:
        """Send no more; may be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def send(self, text: str, fds: Sequence[OwnedFd] = ()) -> bool:
        """Send one message, after all earlier ones; whether it was taken.

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
                    # Too many descriptors in flight: systemd has to take some out first.
                    if not self._waiting:
                        logger.warning("waiting for the service manager: %s", error.strerror)
                    self._waiting = True
                    await trio.sleep(RETRY_PAUSE)

    def try_send(self, text: str) -> bool:
        """Send at once or not at all; whether it was taken. Does not overtake a waiting send()."""
        return not self._lock.locked() and self._try(text)

    async def feed_watchdog(self, interval: float) -> None:
        """Show every interval seconds that the event loop turns; does not return."""
        while True:
            # It may overtake: a queue of messages that moves slowly is no hanging event loop. If it
            # is full, the next message that goes takes the sign of life along.
            self._watchdog_due = True
            self._try(WATCHDOG)
            await trio.sleep(interval / 10 if self._watchdog_due else interval)

    def _try(self, text: str) -> bool:
        try:
            return self._send(text, ())
        except OSError:
            return False

    def _send(self, text: str, fds: Sequence[OwnedFd]) -> bool:
        """Raises OSError where trying again later helps; any other failure is logged, once."""
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
                logger.warning("the service manager cannot be told: %s", error.strerror)
            self._failing = True
            return False
        self._failing = self._watchdog_due = False
        return True


def _connected(address: str) -> socket.socket | None:
    """None, and a warning, if it cannot be used: vsock, or where nobody is."""
    if address[0] not in "/@":
        logger.warning("NOTIFY_SOCKET=%s is no path and no abstract address: not used", address)
        return None
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        logger.warning("the service manager cannot be told: %s", error.strerror)
        return None
    try:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
    except (OSError, ValueError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        logger.warning("NOTIFY_SOCKET=%s is not used: %s", address, reason)
        return None
    return sock


async def follow_signals(
    stop: Callable[[], None],
    notifier: Notifier,
    hang_up: Callable[[], None] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call stop on SIGTERM and SIGINT, and hang_up on SIGHUP, which otherwise is not received."""
    ends = (signal.SIGTERM, signal.SIGINT)
    with trio.open_signal_receiver(
        *ends, *(() if hang_up is None else (signal.SIGHUP,))
    ) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP and hang_up is not None:
                hang_up()
                continue
            logger.info("ending on %s", signal.Signals(number).name)
            notifier.try_send(STOPPING)
            stop()
