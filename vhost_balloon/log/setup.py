"""Sets up this process's log: level, style, and whatever Python and its libraries would otherwise
write to standard error."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from types import TracebackType
from typing import Final

import trio

from vhost_balloon.log.lines import JsonFormatter, Shortage, TextFormatter, logger
from vhost_balloon.log.output import LogHandler

RETRY_PAUSE: Final = 1.0
"""Seconds until lost lines are reported, if the log is read again by then."""

_LOST: Final = "VHOST_BALLOON_LOST_LINES"
_shortage: Final = Shortage()


def set_up(level: str = "info", style: str = "text") -> LogHandler:
    """Log to standard error, or to the journal if that leads there. level: "debug" ... "error";
    style: "text" or "json"."""
    handler = _handler()
    if handler is None:
        handler = LogHandler()
        lost = os.environ.pop(_LOST, "")
        handler.lost = int(lost) if lost.isascii() and lost.isdecimal() and len(lost) < 19 else 0
        logging.root.addHandler(handler)
        logging.getLogger("trio.serve_listeners").addFilter(_is_no_shortage)
    text = TextFormatter(level=handler.journal is None)
    handler.setFormatter(JsonFormatter() if style == "json" else text)
    logging.root.setLevel(level.upper())
    return handler


def _handler() -> LogHandler | None:
    return next((found for found in logging.root.handlers if isinstance(found, LogHandler)), None)


def _is_no_shortage(record: logging.LogRecord) -> bool:
    """Replace the traceback that trio logs ten times per second by one line."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, OSError):
        _shortage.met(error, "a client")
    return not isinstance(error, OSError)


def catch_all(handler: LogHandler) -> None:
    """Log uncaught exceptions and warnings, which Python would write to standard error, waiting for
    its reader."""
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _uncaught_in_thread
    try:
        faulthandler.enable(file=handler.output.number)
    except (OSError, RuntimeError, ValueError) as error:
        logger.warning("a crash would leave no trace: %s", error)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):  # ends the process as a signal does
        logger.critical("ended by a bug: %s", kind.__name__, exc_info=(kind, error, trace))


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    logger.error("%s in %r", args.err_msg or "ignored", args.object, exc_info=args.exc_value)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    logger.error("a thread was ended by a bug", exc_info=args.exc_value)


async def tell_losses() -> None:
    """Report lost lines soon after the log is read again: the next line may be hours away."""
    handler = _handler()
    while handler is not None:
        await handler.losing.wait()
        await trio.sleep(RETRY_PAUSE)
        handler.flush()


def hand_over() -> None:
    """Have the program that replaces this one report lost lines."""
    handler = _handler()
    if handler is not None:
        handler.flush()
        os.environ[_LOST] = str(handler.lost)
