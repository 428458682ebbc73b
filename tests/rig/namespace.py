"""Processes in other namespaces: finds their process ids here and starts more of them."""

from __future__ import annotations

import ctypes
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# include/uapi/linux/sched.h
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000


def forker(pid: int) -> ThreadPoolExecutor:
    """Make a thread, for spawn(), in pid's network namespace, whose children also live in its PID
    namespace; shut it down last.

    They see this mount namespace, and have a process id in this PID namespace too.
    """
    return ThreadPoolExecutor(1, "rig-namespace", initializer=_enter, initargs=(pid,))


def _enter(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for name, kind in (("net", _CLONE_NEWNET), ("pid", _CLONE_NEWPID)):
        with Path(f"/proc/{pid}/ns/{name}").open() as namespace:
            if libc.setns(namespace.fileno(), kind) != 0:
                raise OSError(ctypes.get_errno(), f"setns: {name}")


def outside(pid: int, init: int) -> int:
    """Return the process id here of the process that is pid in init's PID namespace.

    Raises:
        ProcessLookupError: no such process.
    """
    namespace = os.stat(f"/proc/{init}/ns/pid").st_ino
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _inner(entry, namespace) == pid:
            return int(entry.name)
    raise ProcessLookupError(f"no process {pid} in the namespace of {init}")


def _inner(process: Path, namespace: int) -> int | None:
    """Return its process id in the namespace with this inode, None if it is in another."""
    try:
        if (process / "ns/pid").stat().st_ino != namespace:
            return None
        match = re.search(r"^NSpid:.*\t(\d+)$", (process / "status").read_text(), re.MULTILINE)
    except OSError:  # it has just ended
        return None
    return int(match[1]) if match else None
