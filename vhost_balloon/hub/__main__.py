"""The vhost-balloon-hub command."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import raise_descriptor_limit
from vhost_balloon.hub.commands import Hub
from vhost_balloon.hub.control import MAX_CLIENTS as MAX_CONTROL_CLIENTS
from vhost_balloon.hub.control import Control
from vhost_balloon.hub.folders import MAX_VMS
from vhost_balloon.hub.handed import NOTHING, Handed, sort
from vhost_balloon.hub.options import HubOptions, parse
from vhost_balloon.hub.policed import PolicedVms
from vhost_balloon.hub.reload import Configuration, read, reload_on_signal
from vhost_balloon.hub.scraped import Scraped
from vhost_balloon.hub.status import keep_status, summary
from vhost_balloon.hub.vms import HUB_PLACES, Host
from vhost_balloon.log import setup as log_setup
from vhost_balloon.log.lines import logger, shortened
from vhost_balloon.log.output import prepare_descriptors
from vhost_balloon.metrics.families import HubErrorCollector
from vhost_balloon.metrics.server import MAX_CLIENTS, MetricsServer
from vhost_balloon.policy.host import HostInputs
from vhost_balloon.policy.lock import PolicyLock
from vhost_balloon.policy.memory_file import MemoryFile
from vhost_balloon.policy.runner import Policy
from vhost_balloon.policy.settings import Mode, PolicySettings
from vhost_balloon.printable import printable
from vhost_balloon.service import environment, signals, systemd
from vhost_balloon.threads import Thread

RESERVE: Final = MAX_CLIENTS + MAX_CONTROL_CLIENTS + 48
"""Descriptors for anything but VMs: clients, the log, the event loop, the host's files, locks."""
CONNECTIONS: Final = 2
"""To each VM: one for its figures, one for the policy."""
OPENING: Final = 5.0
"""Seconds that the start waits for a file, or for the name of an address to be resolved."""


def most_vms() -> int:
    """How many VMs can have CONNECTIONS descriptors each, with RESERVE left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_VMS
    if soft != resource.RLIM_INFINITY:
        most = min(MAX_VMS, (soft - RESERVE) // CONNECTIONS)
    if most < MAX_VMS:
        logger.info("limited to %d VMs: raise LimitNOFILE= (ulimit -n) for more", max(most, 1))
    return max(most, 1)


_Serve = Callable[[], Awaitable[None]]


class _SideService:
    """A service that opens something before it serves. open_: raises OperatorError while the
    operator has something to correct; returns what serves."""

    def __init__(self, open_: Callable[[], Awaitable[_Serve]]) -> None:
        self._open: Final = open_
        self._serve: _Serve | None = None
        self.tried: Final = trio.Event()
        """It was opened, or a first attempt failed."""

    async def run(self) -> None:
        """Serve until cancelled; may be called again after a failure. Raises OperatorError."""
        if self._serve is None:
            try:
                self._serve = await self._open()
            finally:
                self.tried.set()
        await self._serve()


async def run(options: HubOptions, settings: PolicySettings, handed: Handed = NOTHING) -> None:
    """Serve scrapes, operators and the policy until SIGTERM or SIGINT.

    None of the three depends on another: what cannot be opened is tried again, and the rest is
    served meanwhile. Raises OperatorError before it serves anything; see _check_memory().
    """
    await _check_memory(settings, handed)
    errors = InternalErrors(HUB_PLACES)
    with ExitStack() as stack:
        notifier = systemd.Notifier()
        stack.callback(notifier.close)
        most = most_vms()
        host = Host(options.folders, errors, most)
        stack.callback(host.close)
        control = Control(errors)
        policy = _policy(options, settings, handed, errors, most, control)
        configuration = Configuration(settings, options.files, policy.change)

        async def open_control() -> _Serve:
            if options.run_folder is not None:
                hub = Hub(policy, configuration)
                control.open(hub, options.run_folder, options.control_access, stack)
            return control.run

        async def open_metrics() -> _Serve:
            scraped = Scraped(host, policy)
            collectors = [HubErrorCollector(errors), scraped.collector()]
            server = await MetricsServer.open(
                options.metrics, scraped.snapshots, errors, handed.listener, collectors
            )
            stack.callback(server.close)
            return server.run

        sides = {"control": _SideService(open_control), "metrics": _SideService(open_metrics)}
        async with trio.open_nursery() as nursery:
            stop = nursery.cancel_scope.cancel

            def start(where: str, service: _Serve) -> None:
                nursery.start_soon(errors.supervise, where, service)

            def hang_up() -> None:
                nursery.start_soon(reload_on_signal, configuration, notifier, errors)

            await nursery.start(partial(signals.follow_signals, stop, notifier, hang_up))
            interval = environment.watchdog_interval()
            if interval is not None:
                start("watchdog", partial(notifier.feed_watchdog, interval))
            start("log", log_setup.tell_losses)
            for where, side in sides.items():
                start(where, side.run)
            start("policy", policy.run)
            with trio.move_on_after(OPENING):
                for side in sides.values():
                    await side.tried.wait()
            said = summary(options.folders, policy.report())
            await notifier.send(f"{systemd.READY}\n{systemd.status(said)}")
            start("status", partial(keep_status, options.folders, policy, notifier, said))


async def _check_memory(settings: PolicySettings, handed: Handed) -> None:
    """Raises OperatorError if the policy needs the host's memory, and cannot read it.

    What hides it from this process hides it until the unit is changed. A cgroup may come, and a
    file system that hangs may go on: the policy waits for both.
    """

    def check() -> None:
        HostInputs.open(replace(settings, cgroup=None), handed.files).close()

    if settings.mode is not Mode.OFF:
        with suppress(trio.TooSlowError):
            await Thread().run(check, OPENING)


def _policy(
    options: HubOptions,
    settings: PolicySettings,
    handed: Handed,
    errors: InternalErrors,
    most: int,
    control: Control,
) -> Policy:
    """The policy; it opens nothing yet."""
    folder = options.run_folder
    return Policy(
        PolicedVms(options.folders, errors, most),
        partial(HostInputs.open, handed=handed.files),
        settings,
        PolicyLock(options.folders),
        None if folder is None else MemoryFile(folder),
        control.announce,
    )


def main() -> None:
    """Exits with 0 after SIGTERM, 1 after a bug, 2 after an operator's mistake."""
    prepare_descriptors()
    handler = log_setup.set_up()
    log_setup.catch_all(handler)
    try:
        handed = sort(environment.inherited())
        options = parse(sys.argv[1:], is_handed_over=handed.listener is not None)
        log_setup.set_up(options.log_level, options.log_format)
        if options.check_only:
            from vhost_balloon.hub.check_config import check_config

            return trio.run(check_config, options)
        settings = trio.run(partial(read, options.files, is_start=True))
        raise_descriptor_limit()
        gc.freeze()  # a full collection would traverse all imported modules
        trio.run(run, options, settings, handed)
    except OperatorError as error:
        handler.write_error(f"vhost-balloon-hub: {printable(shortened(str(error)))}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
