"""Decides whether memory may be discarded: looks for pins, or asks the examiner where it may not.

A daemon that parses what a guest sends has no right over other processes, not even to look: what
lets a process look (CAP_SYS_PTRACE) lets it write to their memory as well. So where the front end
runs as another user, the examiner looks (vhost_balloon/examiner/).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vhost_balloon.fds import OwnedFd
from vhost_balloon.memory.asking import Examiner
from vhost_balloon.memory.pins import PinState, has_rights, hindrance, look

CACHE_SECONDS: Final = 1.0

_EXAMINE: Final = "run vhost-balloon-examiner, which looks on the daemon's behalf, or, "
_SAY: Final = "if no device is passed through to the guest, start the daemon with --discard=always"
_CANNOT: Final = (
    "cannot determine whether the front end has memory pinned for a passed-through device ({why})"
)
_COULD_NOT: Final = (
    "cannot determine whether a front end of another user than the daemon's has memory pinned for "
    "a passed-through device"
)

_UNNAMED: Final = (
    "the kernel does not tell its process, because it is in another PID namespace (run the daemon "
    "in the host's, for example with --pid=host) or its socket was handed over by --fd"
)
_MAY_NOT: Final = {errno.EACCES, errno.EPERM, errno.ENOENT}
"""Errors of a process that may be there, but not for us."""


def may_look(examiner: Path) -> bool:
    """Whether front ends of any user can be examined, by this process or the examiner."""
    return has_rights() or _is_socket(examiner)


def _is_socket(path: Path) -> bool:
    """False as well where it cannot be reached: the shipped folder is open to root only."""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def prospect(examiner: Path) -> str | None:
    """What to know before a front end comes: the hint, where it may not be possible to look."""
    return None if may_look(examiner) else f"{_COULD_NOT}; {_EXAMINE}{_SAY}"


class PinGuard:
    """Looks at process pid (None if it is not known) in the /proc folder.

    why: the reason in words, if the state is UNKNOWN.
    """

    def __init__(
        self,
        pid: int | None,
        proc: Path = Path("/proc"),
        is_peer: Callable[[int], bool] = lambda _: True,
        examiner: Path | None = None,
    ) -> None:
        """is_peer: whether the front end still runs and has this PID. Raises OSError if unknown.

        examiner: the path of the examiner's socket, where there may be none.
        """
        self._pid = pid
        self._proc = proc
        self._is_peer = is_peer
        self._examiner = None if examiner is None else Examiner(examiner)
        self._folder: OwnedFd | None = None
        self._state = PinState.UNKNOWN
        self._looked_at = float("-inf")
        self._memory_size = 0
        self._is_closed = False
        self._misses_examiner = False
        self.why = ""

    def is_settled(self, now: float) -> bool:
        """False while the examiner is being started: the state may become known at once."""
        return self._examiner is None or not self._examiner.is_starting(now)

    def check(self, memory_size: int, now: float) -> PinState:
        """The state, at most CACHE_SECONDS old, or a little more while the examiner is late.

        memory_size: bytes of guest memory. now: the monotonic clock in seconds.
        """
        if self._is_closed:
            return self._state
        is_old = now - self._looked_at >= CACHE_SECONDS or memory_size != self._memory_size
        if is_old or (self._examiner is not None and self._examiner.is_late()):
            self._state, self.why = self._look(memory_size, now)
            self._looked_at, self._memory_size = now, memory_size
        return self._state

    def hint(self) -> str:
        """Why the state is UNKNOWN, and what to do; an examiner helps only where it was missed."""
        remedy = f"{_EXAMINE}{_SAY}" if self._misses_examiner else _SAY
        return f"{_CANNOT.format(why=self.why)}; {remedy}"

    def close(self) -> None:
        """Close the process's folder and the connection to the examiner; the state stays."""
        self._is_closed = True
        if self._folder is not None:
            self._folder.close()
        if self._examiner is not None:
            self._examiner.close()

    def _look(self, memory_size: int, now: float) -> tuple[PinState, str]:
        self._misses_examiner = False
        if self._pid is None or self._pid <= 0:
            return PinState.UNKNOWN, _UNNAMED
        try:
            return look(self._process(self._pid), memory_size), ""
        except (OSError, ValueError) as error:
            state, why = PinState.UNKNOWN, hindrance(error)
            if isinstance(error, OSError) and error.errno in _MAY_NOT:
                state, why = self._ask(self._pid, memory_size, now, why)
        return state, why and f"process {self._pid}: {why}"

    def _ask(self, pid: int, memory_size: int, now: float, why: str) -> tuple[PinState, str]:
        """Ask the examiner. why: the reason for not looking, which holds if there is none."""
        if self._examiner is None:
            self._misses_examiner = True
            return PinState.UNKNOWN, why
        found = self._examiner.ask(pid, memory_size, now, CACHE_SECONDS)
        if found is None:
            self._misses_examiner = self._examiner.is_absent()
            return PinState.UNKNOWN, f"{why}; {self._examiner.trouble}"
        try:
            # Only after the answer: while the front end runs, no other process has its PID.
            if found[0] is not PinState.FREE or self._is_peer(pid):
                return found
        except OSError as error:
            return PinState.UNKNOWN, hindrance(error)
        return PinState.UNKNOWN, "it has ended"

    def _process(self, pid: int) -> int:
        """A descriptor of its /proc folder, which never becomes that of a later process with the
        same PID. Raises OSError."""
        if self._folder is None:
            folder = OwnedFd(os.open(self._proc / str(pid), os.O_PATH | os.O_DIRECTORY))
            # Only after the folder is open: while the front end runs, no other process has its PID.
            if not self._is_peer(pid):
                raise ProcessLookupError(errno.ESRCH, "it is not the front end")
            self._folder = folder
        return self._folder.fileno()
