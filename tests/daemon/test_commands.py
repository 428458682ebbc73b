"""The command upgrade; config-reload is in test_reload.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.control_client import Client, MemoryListener
from tests.support.end_to_end import by_hand
from tests.support.vms.operated import operated
from vhost_balloon.config.config import parse
from vhost_balloon.control.server import serve_control
from vhost_balloon.daemon.commands import service_commands
from vhost_balloon.daemon.reload import Configuration
from vhost_balloon.errors import CommandError
from vhost_balloon.restart import upgrade
from vhost_balloon.vm.vm import Vm


class FakeSuccessor:
    """A program that can or cannot replace this one."""

    def __init__(self, mistake: str = "") -> None:
        self.mistake = mistake
        self.is_wanted = False

    async def check(self) -> None:
        if self.mistake:
            raise CommandError(self.mistake)

    def want(self) -> None:
        self.is_wanted = True


async def client_of(vm: Vm, nursery: trio.Nursery, successor: FakeSuccessor) -> Client:
    listener = MemoryListener()
    configuration = Configuration(parse(["--socket-path=/nowhere/web1.sock"]), vm, None)
    commands = service_commands(configuration, successor)
    await nursery.start(partial(serve_control, listener, vm, commands=commands))
    client = listener.connect(lockstep=True)
    await client.negotiate()
    return client


async def test_the_reply_to_upgrade_is_sent_before_the_program_goes(
    vm: Vm, nursery: trio.Nursery
) -> None:
    successor = FakeSuccessor()
    client = await client_of(vm, nursery, successor)
    async with trio.open_nursery() as sending:
        sending.start_soon(client.stream.send_all, b'{"execute": "upgrade"}')
        await trio.testing.wait_all_tasks_blocked()
        assert not successor.is_wanted, "the client has not read it yet"
        assert await client.read() == {"return": {}}
    await trio.testing.wait_all_tasks_blocked()
    assert successor.is_wanted


async def test_a_program_that_cannot_take_over_is_the_commands_failure(
    vm: Vm, nursery: trio.Nursery
) -> None:
    successor = FakeSuccessor("the new program does not start: no such module")
    client = await client_of(vm, nursery, successor)
    assert await client.failure("upgrade") == ("GenericError", successor.mistake)
    await trio.testing.wait_all_tasks_blocked()
    assert not successor.is_wanted


@pytest.mark.parametrize("command", ["upgrade", "config-reload"])
async def test_commands_for_the_daemon_take_no_arguments(
    vm: Vm, nursery: trio.Nursery, command: str
) -> None:
    successor = FakeSuccessor()
    client = await client_of(vm, nursery, successor)
    failure = await client.failure(command, id="web1")
    assert failure == ("GenericError", "Parameter 'id' is unexpected")
    assert not successor.is_wanted


async def test_a_vm_that_a_stuck_process_has_is_not_upgraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to hand over, and the lock would not be taken sooner."""

    async def never(*_: Any) -> None:
        raise AssertionError("upgrade.check was called")

    async with operated(tmp_path) as (host, client):
        monkeypatch.setattr(upgrade, "check", never)
        host.vm().waits_for_lock = True
        _, text = await client.failure("upgrade")
        assert text == "the previous process still has the VM and cannot be killed"


@pytest.mark.parametrize("command", ["vm-add", "vm-del"])
async def test_vms_come_and_go_with_their_processes(tmp_path: Path, command: str) -> None:
    """Commands of the former daemon for several VMs no longer exist."""
    async with operated(tmp_path) as (host, client), by_hand(host.path()) as guest:
        failure = await client.failure(command, id="vm1")
        assert failure == ("CommandNotFound", f"The command {command} has not been found")
        assert {"name": command} not in await client.execute("query-commands")
        await guest.works(host.vm())
