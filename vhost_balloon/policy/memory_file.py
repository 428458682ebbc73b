"""Keeps the policy's memory over a restart of the hub, in a file in the hub's run folder.

That folder lies in RAM, so the file does not survive a boot, after which its times would mean
nothing. Times that lie ahead are refused, in case it does.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Final

from vhost_balloon.checked import Document, flag, reading, real
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.policy.constants import HOLD
from vhost_balloon.policy.memory import Memory, VmMemory, from_document, to_document

FILE: Final = "policy-memory.json"
VERSION: Final = 2
MAX_FILE: Final = 4 << 20
"""Bytes; 200 VMs need 70 KiB."""
INTERVAL: Final = 10.0
"""Seconds between two writes, unless a decision is to be remembered."""

_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class MemoryFile:
    """The file in folder."""

    def __init__(self, folder: Path) -> None:
        self._path: Final = folder / FILE
        self._new: Final = folder / f"{FILE}.new"
        self._written = float("-inf")
        self._fails = False
        self.releasing = False
        """Whether memory went back to all VMs by order when the file was written; see read()."""

    def read(self, now: float) -> dict[str, VmMemory]:
        """What was remembered; nothing if it cannot be used, which is logged."""
        try:
            data = self._read()
            with reading("its text"):
                document = json.loads(data)
                memory = _checked(document, now)
                self.releasing = flag(document.get("releasing", False))
        except FileNotFoundError:
            return {}
        except (OSError, StateError, RecursionError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            logger.warning("the policy starts without its memory: %s: %.200s", self._path, reason)
            return {}
        return memory

    def write(self, now: float, memory: Memory, *, urgent: bool, releasing: bool = False) -> None:
        """Replace the file if it is urgent, or older than INTERVAL. A failure is logged once."""
        if not urgent and 0 <= now - self._written < INTERVAL:
            return
        self._written = now
        document = {
            "version": VERSION,
            "written": now,
            "releasing": releasing,
            "vms": to_document(memory),
        }
        try:
            self._replace(json.dumps(document).encode())
        except OSError as error:
            if not self._fails:
                logger.warning(
                    "the policy cannot write down its memory, and decides without: %s: %s",
                    self._path,
                    error.strerror,
                )
            self._fails = True
        else:
            self._fails = False

    def _read(self) -> bytes:
        """Raises OSError or StateError."""
        fd = OwnedFd(os.open(self._path, os.O_RDONLY | _FLAGS))
        try:
            if not stat.S_ISREG(os.fstat(fd.fileno()).st_mode):
                raise StateError("not a regular file")
            with open(fd.fileno(), "rb", closefd=False) as file:
                data = file.read(MAX_FILE + 1)
        finally:
            fd.close()
        if len(data) > MAX_FILE:
            raise StateError(f"longer than {MAX_FILE >> 20} MiB")
        return data

    def _replace(self, data: bytes) -> None:
        """Raises OSError; the file is then as it was."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS
        with open(os.open(self._new, flags, 0o600), "wb") as file:
            file.write(data)
        os.replace(self._new, self._path)


def _checked(document: Document, now: float) -> dict[str, VmMemory]:
    """Raises StateError, or what reading() turns into one."""
    if document["version"] != VERSION:
        raise ValueError("of another version")
    memory = from_document(document["vms"])
    latest = [real(document["written"])]
    for vm in memory.values():
        latest += [time for time in (vm.sampled, vm.moving_since) if time is not None]
        if vm.held_until is not None:
            latest.append(vm.held_until - HOLD)
    if max(latest) > now:
        raise ValueError("times lie ahead")
    return memory
