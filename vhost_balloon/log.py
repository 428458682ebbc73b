"""Log lines: each says which VM it is about, and a guest cannot fill the host's log."""

from __future__ import annotations

import json
import logging
import time
from typing import Final

logger: Final = logging.getLogger("vhost_balloon")

BURST: Final = 10
INTERVAL: Final = 10.0
"""At most BURST lines in INTERVAL seconds of a VM's misbehaviour, and as many of its comings and
goings; the rest is counted."""


class Limit:
    """How many lines of one level there were in the window at hand."""

    def __init__(self) -> None:
        self._window = float("-inf")
        self._lines = 0

    def line(self, now: float) -> tuple[bool, int]:
        """Whether a line may be written now, and how many were left out in the last window."""
        left_out = 0
        if now - self._window >= INTERVAL:
            left_out = max(self._lines - BURST, 0)
            self._window, self._lines = now, 0
        self._lines += 1
        return self._lines <= BURST, left_out


class VmLog:
    """The log of one VM."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._limits = {logging.INFO: Limit(), logging.WARNING: Limit()}

    def info(self, text: str) -> None:
        """What the front end does, good or bad, as often as it likes: limited in number."""
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


class TextFormatter(logging.Formatter):
    """LEVEL vm: text."""

    def format(self, record: logging.LogRecord) -> str:
        vm = getattr(record, "vm", None)
        line = record.getMessage() if vm is None else f"{vm}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return f"{record.levelname.lower()}: {line}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (seconds since the epoch), level, message, vm where known."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        vm = getattr(record, "vm", None)
        if vm is not None:
            fields["vm"] = vm
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def set_up(level: str, style: str) -> None:
    """Log to stderr at a level ("debug" ... "error") in a style ("text" or "json")."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
