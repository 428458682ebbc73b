"""The vhost-balloon-examiner command."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import OperatorError
from vhost_balloon.examiner.options import parse
from vhost_balloon.examiner.server import ExaminerServer
from vhost_balloon.fds import raise_descriptor_limit
from vhost_balloon.log import setup as log_setup
from vhost_balloon.log.lines import logger, shortened
from vhost_balloon.log.output import prepare_descriptors
from vhost_balloon.memory.pins import has_rights
from vhost_balloon.printable import printable
from vhost_balloon.service import environment, signals, systemd
from vhost_balloon.service.handed_over import paths, take_sockets
from vhost_balloon.service.listeners import SocketOptions, listen

PLACES: Final = ("client", "log", "server", "watchdog")
"""Where failures are contained."""

ACCESS: Final = SocketOptions(0o666)
"""Whoever can reach the socket's folder may ask."""


NO_RIGHTS: Final = (
    "cannot look into processes of other users: run this as root, or with CAP_SYS_PTRACE and "
    "CAP_DAC_READ_SEARCH"
)


async def run(sock: socket.socket) -> None:
    """Answer the clients of a listening socket until SIGTERM or SIGINT."""
    errors = InternalErrors(PLACES)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    server = ExaminerServer(errors)
    with closing(systemd.Notifier()) as notifier:
        async with trio.open_nursery() as nursery:

            def start(where: str, service: Callable[[], Awaitable[None]]) -> None:
                nursery.start_soon(errors.supervise, where, service)

            stop = nursery.cancel_scope.cancel
            await nursery.start(partial(signals.follow_signals, stop, notifier))
            interval = environment.watchdog_interval()
            if interval is not None:
                start("watchdog", partial(notifier.feed_watchdog, interval))
            start("log", log_setup.tell_losses)
            start("server", partial(server.run, listener))
            await notifier.send(systemd.READY)


def _listen(path: Path, stack: ExitStack) -> socket.socket:
    """Listen on path until the end of stack. Raises OperatorError."""
    sock, file = listen(path, ACCESS)
    stack.callback(file.close)
    stack.callback(file.remove)
    return sock


def main() -> None:
    """Exits with 0 after SIGTERM, 1 after a bug, 2 after an operator's mistake."""
    prepare_descriptors()
    handler = log_setup.set_up()
    log_setup.catch_all(handler)
    try:
        handed = take_sockets(environment.inherited())
        options = parse(sys.argv[1:], paths(handed))
        log_setup.set_up(options.log_level, options.log_format)
        raise_descriptor_limit()
        if not has_rights():
            logger.warning(NO_RIGHTS)
        with ExitStack() as stack:
            if options.socket_path is not None:
                sock = _listen(options.socket_path, stack)
            else:
                [sock] = (taken.sock for taken in handed.values())
            gc.freeze()
            trio.run(run, sock)
    except OperatorError as error:
        handler.write_error(f"vhost-balloon-examiner: {printable(shortened(str(error)))}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
