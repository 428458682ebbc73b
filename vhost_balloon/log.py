"""Log lines: each says which VM it is about, and a guest cannot fill the host's log."""

from __future__ import annotations

import json
import logging
import time
from typing import Final

logger: Final = logging.getLogger("vhost_balloon")

BURST: Final = 10
INTERVAL: Final = 10.0
"""At most BURST lines in INTERVAL seconds from one VM's misbehaviour; the rest is counted."""


class VmLog:
    """The log of one VM."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._window = float("-inf")
        self._lines = 0

    def info(self, text: str) -> None:
        self._log(logging.INFO, text)

    def warning(self, text: str) -> None:
        self._log(logging.WARNING, text)

    def misbehaved(self, text: str) -> None:
        """A warning that the guest or the front end can cause at will: limited in number."""
        now = time.monotonic()
        if now - self._window >= INTERVAL:
            if self._lines > BURST:
                self.warning(f"{self._lines - BURST} more messages were left out")
            self._window, self._lines = now, 0
        self._lines += 1
        if self._lines <= BURST:
            self.warning(text)

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
