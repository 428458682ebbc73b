"""Reads what the service manager passes in the environment: descriptors, store, watchdog.

Implements sd_listen_fds(3), $FDSTORE and sd_watchdog_enabled(3) without their library.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from typing import Final

from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger

FIRST_FD: Final = 3
MAX_HANDED: Final = 1 << 20
"""Most descriptors that a process can have (fs.nr_open)."""
UNNAMED: Final = "unknown"
"""systemd's name for a descriptor without one."""


def inherited() -> list[tuple[str, OwnedFd]]:
    """The descriptors that were handed over, with their names, in order; once per process.

    Drops the variables, and closes the descriptors on exec. Raises OperatorError if the variables
    make no sense.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    given = {name: os.environ.pop(name, "") for name in names}
    # They may have been meant for a parent of ours that did not drop them.
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"]:
        return []
    count = _number(given, "LISTEN_FDS")
    if count > MAX_HANDED:
        raise OperatorError(f"LISTEN_FDS={count} in the environment exceeds {MAX_HANDED}")
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
    """Descriptors that the service manager stores for us; 0: none ($FDSTORE, systemd >= 254)."""
    return _optional_number("FDSTORE")


def watchdog_interval() -> float | None:
    """Seconds between two keep-alives, half of what is allowed; None: no watchdog."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return _optional_number("WATCHDOG_USEC") / 2e6 or None


def _optional_number(name: str) -> int:
    """A number that the daemon can do without: 0 and a warning for anything else."""
    try:
        return _number(os.environ, name)
    except OperatorError as error:
        logger.warning("%s", error)
        return 0


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name) or "0"
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise OperatorError(f"{name}={text} in the environment is not a number")
    return int(text)
