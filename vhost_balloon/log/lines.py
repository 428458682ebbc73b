"""Log lines: each names its VM, and their number is limited so that no guest fills the host's log.

log/setup.py decides where they go, log/output.py writes them.
"""

from __future__ import annotations

import errno
import json
import logging
import time
from typing import Final

from vhost_balloon.printable import encodable, printable

logger: Final = logging.getLogger("vhost_balloon")

BURST: Final = 10
INTERVAL: Final = 10.0
"""At most BURST lines per INTERVAL seconds about a VM's misbehaviour, and as many about its front
ends' coming and going; the rest is counted."""

MAX_TEXT: Final = 4000
"""Longest message, in characters: enough for a path."""
MAX_TRACEBACK: Final = 20_000
"""Longest traceback, in characters; a longer one loses its middle."""

_REMEDIES: Final = {
    errno.EMFILE: ": raise LimitNOFILE= (ulimit -n)",
    errno.ENFILE: ": raise the sysctl fs.file-max",
}


class Limit:
    """Counts lines of one kind in the current window of INTERVAL seconds."""

    def __init__(self, most: int = BURST) -> None:
        self._most = most
        self._window = float("-inf")
        self._lines = 0

    def line(self, now: float) -> tuple[bool, int]:
        """Whether a line may be written now, and how many were dropped in the last window."""
        left_out = 0
        if now - self._window >= INTERVAL:
            left_out = max(self._lines - self._most, 0)
            self._window, self._lines = now, 0
        self._lines += 1
        return self._lines <= self._most, left_out


class VmLog:
    """The log of one VM."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._limits = {logging.INFO: Limit(), logging.WARNING: Limit()}

    def info(self, text: str) -> None:
        """A line that the front end can cause at will, by normal behaviour: limited in number."""
        self._limited(logging.INFO, text)

    def warning(self, text: str) -> None:
        self._log(logging.WARNING, text)

    def misbehaved(self, text: str) -> None:
        """A warning that the guest or the front end can cause at will: limited in number."""
        self._limited(logging.WARNING, text)

    def _limited(self, level: int, text: str) -> None:
        may, left_out = self._limits[level].line(time.monotonic())
        if left_out:
            self._log(level, f"{left_out} more messages were left out")
        if may:
            self._log(level, text)

    def _log(self, level: int, text: str) -> None:
        logger.log(level, "%s", text, extra={"vm": self._vm})


class Shortage:
    """Reports that no client can be accepted for want of descriptors or memory: one line per
    INTERVAL seconds for all clients."""

    def __init__(self) -> None:
        self._limit = Limit(1)

    def met(self, error: OSError, who: str, vm: str | None = None) -> None:
        remedy = _REMEDIES.get(error.errno or 0, "")
        self.say(f"{who} has to wait: {error.strerror}{remedy}", vm)

    def say(self, text: str, vm: str | None) -> None:
        may, _ = self._limit.line(time.monotonic())
        if may:
            logger.warning("%s", text, extra={"vm": vm})


class TextFormatter(logging.Formatter):
    """LEVEL: vm: text, on one line; a traceback may follow."""

    def __init__(self, *, level: bool = True) -> None:
        super().__init__()
        self._level = level

    def format(self, record: logging.LogRecord) -> str:
        vm = getattr(record, "vm", None)
        line = _message(record) if vm is None else f"{vm}: {_message(record)}"
        if self._level:
            line = f"{record.levelname.lower()}: {line}"
        line = printable(line)
        if record.exc_info:
            trace = _cut(self.formatException(record.exc_info))
            line = "\n".join([line, *map(printable, trace.split("\n"))])
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (seconds since the epoch), level, message, vm if known."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "message": encodable(_message(record)),
        }
        vm = getattr(record, "vm", None)
        if vm is not None:
            fields["vm"] = vm
        if record.exc_info:
            fields["traceback"] = encodable(_cut(self.formatException(record.exc_info)))
        return json.dumps(fields)


def _message(record: logging.LogRecord) -> str:
    return shortened(record.getMessage())


def shortened(text: str) -> str:
    """The message, cut to MAX_TEXT characters."""
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def _cut(traceback: str) -> str:
    """Keep the start, which shows the origin, and the end, which names the error."""
    half = MAX_TRACEBACK // 2
    if len(traceback) <= MAX_TRACEBACK:
        return traceback
    return f"{traceback[:half]}\n...\n{traceback[-half:]}"
