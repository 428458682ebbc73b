"""Reads the hub's configuration files, at the start and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.config.in_time import read_in_time
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import OperatorError
from vhost_balloon.log.lines import logger
from vhost_balloon.policy.settings import PolicySettings
from vhost_balloon.service import systemd
from vhost_balloon.threads import Thread

NOTIFYING: Final = 1.0
"""Seconds for the service manager to take the message that a reload begins."""


async def read(
    files: Sequence[Path], thread: Thread | None = None, *, is_start: bool = False
) -> PolicySettings:
    """The settings of the files. thread: what they are read in; None for one of their own.

    is_start: see read_settings(). Raises OperatorError, also if their file system hangs.
    """
    if not files:
        return PolicySettings()
    from vhost_balloon.hub.config import read_settings  # which costs memory

    call = partial(read_settings, files, is_start=is_start)
    return await read_in_time(thread or Thread(), call, files)


class Configuration:
    """The settings in force, and the files that they come from. apply: puts others in force."""

    def __init__(
        self,
        settings: PolicySettings,
        files: Sequence[Path],
        apply: Callable[[PolicySettings], None],
    ) -> None:
        self._settings = settings
        self._files: Final = files
        self._apply: Final = apply
        self._thread: Final = Thread()
        """So that reloads follow each other, and no two threads hang."""

    async def reload(self) -> Sequence[str]:
        """Read the files again and apply them; return the names of the settings that changed.

        See read_in_time(). Raises OperatorError; nothing is changed then.
        """
        if not self._files:
            raise OperatorError("this hub was started without --config")
        settings = await read(self._files, self._thread)
        names = list(changed(self._settings, settings))
        self._settings = settings
        self._apply(settings)
        logger.info("reloaded; changed: %s", ", ".join(names) or "nothing")
        return names


async def reload_on_signal(
    configuration: Configuration, notifier: systemd.Notifier, errors: InternalErrors
) -> None:
    """Reload, and tell the service manager its begin and end. Mistakes are logged."""
    is_told = False
    with trio.move_on_after(NOTIFYING):  # a manager that reads nothing keeps no setting back
        is_told = await notifier.send(systemd.reloading())
    with errors.contained("reload"):
        try:
            await configuration.reload()
        except OperatorError as error:
            logger.error("the settings stay as they are: %s", error)
    if is_told:  # and waits for the end, however long it takes
        await notifier.send(systemd.READY)


def changed(before: PolicySettings, after: PolicySettings) -> Iterator[str]:
    """The names of the settings and tables that differ, as in the file."""
    for name in ("mode", "reserve", "cgroup", "zfs_arc"):
        if getattr(before, name) != getattr(after, name):
            yield f"policy.{name.replace('_', '-')}"
    if before.defaults != after.defaults:
        yield "defaults"
    for vm in sorted({*before.vms, *after.vms}):
        if before.of(vm) != after.of(vm):
            yield f"vm.{vm}"
