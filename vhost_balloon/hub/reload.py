"""Reads the hub's configuration files again; a mistake in them changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.errors import OperatorError
from vhost_balloon.log.lines import logger
from vhost_balloon.policy.settings import PolicySettings


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
        self._reading: Final = trio.Lock()

    async def reload(self) -> Sequence[str]:
        """Read the files again and apply them; return the names of the settings that changed.

        Raises OperatorError; nothing is changed then.
        """
        if not self._files:
            raise OperatorError("this hub was started without --config")
        from vhost_balloon.hub.config import read_settings  # which costs memory

        async with self._reading:
            # In a thread, because a file system may hang.
            settings = await trio.to_thread.run_sync(
                read_settings, self._files, abandon_on_cancel=True
            )
            names = list(changed(self._settings, settings))
            self._settings = settings
            self._apply(settings)
            logger.info("reloaded; changed: %s", ", ".join(names) or "nothing")
            return names


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
