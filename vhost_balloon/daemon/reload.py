"""Reads the configuration files again; checks everything first, so that a mistake changes
nothing."""

from __future__ import annotations

from vhost_balloon.config.config import Config
from vhost_balloon.config.file import read_files
from vhost_balloon.config.in_time import read_in_time
from vhost_balloon.daemon.sockets import Listening
from vhost_balloon.errors import OperatorError
from vhost_balloon.service.listeners import find_group
from vhost_balloon.threads import Thread
from vhost_balloon.vm.doubts import doubts
from vhost_balloon.vm.settings import VmSettings, changed_settings
from vhost_balloon.vm.vm import Vm


class Configuration:
    """The settings in force, and the files they come from.

    listening: where front ends connect, None if the only one is connected already.
    """

    def __init__(self, config: Config, vm: Vm, listening: Listening | None) -> None:
        self._config = config
        self._vm = vm
        self.listening = listening
        self._thread = Thread()
        """So that reloads follow each other, and no two threads hang."""

    async def reload(self) -> list[str]:
        """Read the files again and apply them; return the names of the settings that changed.

        The statistics interval, the guest's memory and the socket's permissions apply at once,
        everything else to the next front end. See read_in_time(). Raises OperatorError; nothing is
        changed then.
        """
        if not self._config.files:
            raise OperatorError("this daemon was started without --config")
        settings = await read_in_time(self._thread, self._read, self._config.files)
        before, access = self._vm.settings, settings.access
        self._vm.change(settings)
        for doubt in doubts(settings):
            self._vm.log.warning(doubt)
        if access != before.access and self.listening is not None:
            try:
                self.listening.set_access(access)
            except OperatorError as error:
                # The socket's file was removed: not a mistake in the configuration.
                self._vm.log.warning(str(error))
        return changed_settings(before, settings)

    def _read(self) -> VmSettings:
        settings = read_files(self._config.files, self._config.base)
        find_group(settings.access.group)
        return settings
