"""The control socket: a QMP server of the VM's commands and its event."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from protocol.qmp import Json
from vhost_balloon.control.commands import COMMANDS
from vhost_balloon.control.events import BalloonEvents
from vhost_balloon.qmp_server.command import Command
from vhost_balloon.qmp_server.server import Listener, QmpServer
from vhost_balloon.vm.vm import Vm


async def serve_control(
    listener: Listener,
    vm: Vm,
    *,
    commands: Mapping[str, Command[Vm]] = COMMANDS,
    task_status: trio.TaskStatus[list[Listener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve clients until cancelled."""
    server = QmpServer(vm, commands, _describe, vm.internal_errors)
    async with trio.open_nursery() as nursery:
        events = BalloonEvents(nursery, server.broadcast, vm.internal_errors)
        vm.add_listener(events.changed)
        try:
            await server.run(listener, task_status)
        finally:
            vm.remove_listener(events.changed)


def _describe(commands: Mapping[str, Command[Vm]]) -> Json:
    from vhost_balloon.control.schema import describe  # rarely needed

    return describe(commands)
