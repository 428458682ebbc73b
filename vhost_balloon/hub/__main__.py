"""The vhost-balloon-hub command."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
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
from vhost_balloon.hub.status import summary
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
from vhost_balloon.policy.settings import PolicySettings
from vhost_balloon.printable import printable
from vhost_balloon.service import environment, signals, systemd

RESERVE: Final = MAX_CLIENTS + MAX_CONTROL_CLIENTS + 48
"""Descriptors for anything but VMs: clients, the log, the event loop, the host's files, locks."""
CONNECTIONS: Final = 2
"""To each VM: one for its figures, one for the policy."""


def most_vms() -> int:
    """How many VMs can have CONNECTIONS descriptors each, with RESERVE left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_VMS
    if soft != resource.RLIM_INFINITY:
        most = min(MAX_VMS, (soft - RESERVE) // CONNECTIONS)
    if most < MAX_VMS:
        logger.info("limited to %d VMs: raise LimitNOFILE= (ulimit -n) for more", max(most, 1))
    return max(most, 1)


async def run(options: HubOptions, settings: PolicySettings, handed: Handed = NOTHING) -> None:
    """Serve scrapes, operators and the policy until SIGTERM or SIGINT.

    Raises OperatorError before it serves anything.
    """
    errors = InternalErrors(HUB_PLACES)
    with ExitStack() as stack:
        notifier = systemd.Notifier()
        stack.callback(notifier.close)
        most = most_vms()
        host = Host(options.folders, errors, most)
        stack.callback(host.close)
        control = Control(errors)
        policy = _policy(options, settings, handed, errors, most, control)
        policy.open()
        configuration = Configuration(settings, options.files, policy.change)
        if options.run_folder is not None:
            hub = Hub(policy, configuration)
            control.open(hub, options.run_folder, options.control_access, stack)
        scraped = Scraped(host, policy)
        collectors = [HubErrorCollector(errors), scraped.collector()]
        server = await MetricsServer.open(
            options.metrics, scraped.snapshots, errors, handed.listener, collectors
        )
        stack.callback(server.close)
        async with trio.open_nursery() as nursery:
            stop = nursery.cancel_scope.cancel

            def start(where: str, service: Callable[[], Awaitable[None]]) -> None:
                nursery.start_soon(errors.supervise, where, service)

            def hang_up() -> None:
                nursery.start_soon(reload_on_signal, configuration, notifier, errors)

            await nursery.start(partial(signals.follow_signals, stop, notifier, hang_up))
            interval = environment.watchdog_interval()
            if interval is not None:
                start("watchdog", partial(notifier.feed_watchdog, interval))
            start("log", log_setup.tell_losses)
            start("metrics", server.run)
            start("control", control.run)
            start("policy", policy.run)
            said = summary(options.folders, policy.report())
            await notifier.send(f"{systemd.READY}\n{systemd.status(said)}")
            start("status", partial(_keep_status, options.folders, policy, notifier, said))


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


async def _keep_status(
    folders: Sequence[Path], policy: Policy, notifier: systemd.Notifier, said: str
) -> None:
    """Keep the service manager's status line up to date."""
    while notifier:
        await policy.changed.wait()
        policy.changed = trio.Event()
        text = summary(folders, policy.report())
        if text != said:
            await notifier.send(systemd.status(text))
            said = text


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
        settings = trio.run(read, options.files)
        raise_descriptor_limit()
        gc.freeze()  # a full collection would traverse all imported modules
        trio.run(run, options, settings, handed)
    except OperatorError as error:
        handler.write_error(f"vhost-balloon-hub: {printable(shortened(str(error)))}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
