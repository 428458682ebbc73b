"""The vhost-balloon-hub command."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Final

import trio

from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd, raise_descriptor_limit
from vhost_balloon.hub.check_config import check_config
from vhost_balloon.hub.folders import MAX_VMS
from vhost_balloon.hub.options import HubOptions, parse
from vhost_balloon.hub.vms import HUB_PLACES, Host
from vhost_balloon.log import setup as log_setup
from vhost_balloon.log.lines import logger, shortened
from vhost_balloon.log.output import prepare_descriptors
from vhost_balloon.metrics.families import HubErrorCollector
from vhost_balloon.metrics.server import MAX_CLIENTS, MetricsServer
from vhost_balloon.printable import printable
from vhost_balloon.service import environment, signals, systemd
from vhost_balloon.service.handed_over import METRICS, take_sockets

RESERVE: Final = MAX_CLIENTS + 32
"""Descriptors for anything but VMs: scrapers, the log, the event loop, a file that is read."""


def most_vms() -> int:
    """How many VMs can have a descriptor each, with RESERVE left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_VMS if soft == resource.RLIM_INFINITY else min(MAX_VMS, soft - RESERVE)
    if most < MAX_VMS:
        logger.info("limited to %d VMs: raise LimitNOFILE= (ulimit -n) for more", max(most, 1))
    return max(most, 1)


async def run(options: HubOptions, listener: trio.SocketListener | None = None) -> None:
    """Answer scrapes until SIGTERM or SIGINT. listener: a socket that already listens for them.

    Raises OperatorError before it serves anything.
    """
    errors = InternalErrors(HUB_PLACES)
    with ExitStack() as stack:
        notifier = systemd.Notifier()
        stack.callback(notifier.close)
        host = Host(options.folders, errors, most_vms())
        stack.callback(host.close)
        server = await MetricsServer.open(
            options.metrics, host.snapshots, errors, listener, [HubErrorCollector(errors)]
        )
        stack.callback(server.close)
        async with trio.open_nursery() as nursery:
            stop = nursery.cancel_scope.cancel

            def start(where: str, service: Callable[[], Awaitable[None]]) -> None:
                nursery.start_soon(errors.supervise, where, service)

            await nursery.start(partial(signals.follow_signals, stop, notifier))
            interval = environment.watchdog_interval()
            if interval is not None:
                start("watchdog", partial(notifier.feed_watchdog, interval))
            start("log", log_setup.tell_losses)
            start("metrics", server.run)
            folders = ", ".join(map(str, options.folders))
            await notifier.send(f"{systemd.READY}\n{systemd.status(f'VMs of {folders}')}")


def one_socket(handed: list[tuple[str, OwnedFd]]) -> list[tuple[str, OwnedFd]]:
    """Raises OperatorError if it is more."""
    if len(handed) > 1:
        raise OperatorError(
            f"{len(handed)} sockets were handed over, but the hub takes one: leave one "
            "ListenStream= in its unit"
        )
    return handed


def main() -> None:
    """Exits with 0 after SIGTERM, 1 after a bug, 2 after an operator's mistake."""
    prepare_descriptors()
    handler = log_setup.set_up()
    log_setup.catch_all(handler)
    try:
        # The hub has no other socket, so the name says nothing.
        handed = take_sockets((METRICS, fd) for _, fd in one_socket(environment.inherited()))
        options = parse(sys.argv[1:], is_handed_over=bool(handed))
        log_setup.set_up(options.log_level, options.log_format)
        if options.check_only:
            return trio.run(check_config, options)
        raise_descriptor_limit()
        gc.freeze()  # a full collection would traverse all imported modules
        trio.run(run, options, handed[METRICS].listener() if handed else None)
    except OperatorError as error:
        handler.write_error(f"vhost-balloon-hub: {printable(shortened(str(error)))}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
