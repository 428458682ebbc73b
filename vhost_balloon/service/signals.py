"""Follows the signals that end a program or have it replaced."""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

from vhost_balloon.log.lines import logger
from vhost_balloon.service.systemd import STOPPING, Notifier


async def follow_signals(
    stop: Callable[[], None],
    notifier: Notifier,
    hang_up: Callable[[], None] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call stop on SIGTERM and SIGINT, and hang_up on SIGHUP; without hang_up, SIGHUP is not
    received."""
    ends = (signal.SIGTERM, signal.SIGINT)
    with trio.open_signal_receiver(
        *ends, *(() if hang_up is None else (signal.SIGHUP,))
    ) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP and hang_up is not None:
                hang_up()
                continue
            logger.info("ending on %s", signal.Signals(number).name)
            notifier.try_send(STOPPING)
            stop()
