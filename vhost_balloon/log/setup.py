"""Sets the log up for this process: its level and style, and everything that Python, its libraries
and bugs would otherwise write to standard error."""

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
"""Seconds until a look at whether the log is read again."""

_LOST: Final = "VHOST_BALLOON_LOST_LINES"
_shortage: Final = Shortage()


def set_up(level: str = "info", style: str = "text") -> LogHandler:
    """Log to stderr, or to the journal if it leads there, at a level ("debug" ... "error") in a
    style ("text" or "json")."""
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
    """Put one line in place of the traceback that trio logs ten times a second."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, OSError):
        _shortage.met(error, "a client")
    return not isinstance(error, OSError)


def catch_all(handler: LogHandler) -> None:
    """Have the log told what nobody catches, and warnings. Python writes them to standard error
    and waits for its reader."""
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
    if not issubclass(kind, KeyboardInterrupt):  # which ends the process as a signal does
        logger.critical("ended by a bug: %s", kind.__name__, exc_info=(kind, error, trace))


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    logger.error("%s in %r", args.err_msg or "ignored", args.object, exc_info=args.exc_value)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    logger.error("a thread was ended by a bug", exc_info=args.exc_value)


async def tell_losses() -> None:
    """Say what was lost soon after somebody reads again: the next line may be hours away."""
    handler = _handler()
    while handler is not None:
        await handler.losing.wait()
        await trio.sleep(RETRY_PAUSE)
        handler.flush()


def hand_over() -> None:
    """Have the program that this one becomes say what was lost."""
    handler = _handler()
    if handler is not None:
        handler.flush()
        os.environ[_LOST] = str(handler.lost)
