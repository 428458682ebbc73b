"""vm-add, vm-del and config-reload, on a daemon that serves simulated front ends."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from vhost_balloon.control_fleet import SETTING_KINDS
from vhost_balloon.fleet import ACCEPT_PAUSE, Fleet
from vhost_balloon.vm_spec import Origin, VmSpec

from tests.command import listening
from tests.control_client import Client
from tests.end_to_end import MIB, PAGE, Host, by_hand, eventually, open_fds
from tests.scrapes import Samples, scrape
from tests.test_control_vms import check, schema_of
from vhost_balloon import config, daemon
from vhost_balloon.errors import CommandError
from vhost_balloon.simulator import DriverOptions, GuestRam, running_guest
from vhost_balloon.vm import Machine
from vhost_balloon.vm_settings import SETTINGS

QUIET = DriverOptions(report_delay=None)


@asynccontextmanager
async def operated(folder: Path, *options: str) -> AsyncIterator[tuple[Host, Client]]:
    """A daemon, and a client of its control socket."""
    control = folder / "control"
    settings = config.parse([f"--control-socket={control}", "--stats-interval=0", *options])
    async with trio.open_nursery() as nursery:
        machine = await nursery.start(daemon.run, settings)
        async with await trio.open_unix_socket(control) as stream:
            client = Client(stream)
            await client.negotiate()
            yield Host(machine, folder), client
        nursery.cancel_scope.cancel()


async def add(client: Client, host: Host, name: str, **settings: Any) -> None:
    arguments = {key.replace("_", "-"): value for key, value in settings.items()}
    path = str(host.path(name))
    assert await client.execute("vm-add", id=name, **{"socket-path": path}, **arguments) == {}


async def ids(client: Client) -> list[str]:
    return [vm["id"] for vm in await client.execute("query-vms")]


# vm-add


async def test_a_vm_is_added_and_serves_at_once(tmp_path: Path) -> None:
    async with operated(tmp_path) as (host, client):
        assert await ids(client) == []
        await add(client, host, "vm1")
        assert stat.S_IMODE(host.path().stat().st_mode) == 0o600
        async with by_hand(host.path()) as guest:
            await guest.works(host.vm())
            (vm,) = await client.execute("query-vms")
            assert (vm["id"], vm["attached"]) == ("vm1", True)
            assert vm["socket-path"] == str(host.path())
    assert os.listdir(tmp_path) == [], "the daemon's end removes its socket"


async def test_settings_of_an_added_vm(tmp_path: Path) -> None:
    settings = {
        "reporting": False, "deflate-on-oom": False, "stats": True, "must-tell-host": True,
        "free-page-hint": False, "page-poison": True, "discard": "always",
        "discard-hugetlb": True, "discard-other-filesystems": True, "stats-interval": 2.5,
        "target": 32 * MIB, "report-rate": 1, "socket-mode": "0666", "socket-group": "0",
    }  # fmt: skip
    assert set(settings) == set(SETTINGS) == set(SETTING_KINDS)
    async with operated(tmp_path, "--no-page-poison") as (host, client):
        await add(client, host, "vm1", **settings)
        await add(client, host, "vm2")
        one, two = await client.execute("query-vms")
        assert one["settings"] == settings
        assert one["stats-interval"] == 2.5
        assert two["settings"]["page-poison"] is False, "the command line's"
        assert stat.S_IMODE(host.path().stat().st_mode) == 0o666
        schema = await schema_of(client)
        check(schema, "[VmInfo]", [one, two])
        check(schema, "q_obj_vm-add-arg", {"id": "vm1", "socket-path": "/a", **settings})


async def test_an_initial_target_is_what_each_front_end_starts_with(tmp_path: Path) -> None:
    async with operated(tmp_path) as (host, client):
        await add(client, host, "vm1", target=48 * MIB)
        for _ in range(2):
            async with by_hand(host.path()) as guest:
                num_pages = (await guest.front_end.get_config())[:4]
                assert int.from_bytes(num_pages, "little") == 16 * MIB // PAGE
                assert host.vm().statistics().target == 48 * MIB
                await client.execute("balloon", id="vm1", value=32 * MIB)
                assert host.vm().statistics().target == 32 * MIB
            await eventually(lambda: not host.vm().attached)


async def test_a_guest_comes_to_its_initial_target_by_itself(tmp_path: Path) -> None:
    async with operated(tmp_path) as (host, client):
        await add(client, host, "vm1", target=32 * MIB)
        async with running_guest(host.path(), 64 * MIB, QUIET) as guest:
            with trio.fail_after(20):
                await guest.driver.wait_balloon(32 * MIB // PAGE)
            assert host.vm().statistics().actual == 32 * MIB
            host.vm().set_target(64 * MIB)
            with trio.fail_after(20):
                await guest.driver.wait_balloon(0)


async def test_an_initial_target_above_guest_memory_is_all_of_it(tmp_path: Path) -> None:
    async with operated(tmp_path) as (host, client):
        await add(client, host, "vm1", target=1 << 40)
        async with by_hand(host.path()) as guest:
            assert (await guest.front_end.get_config())[:4] == bytes(4)
            assert host.vm().statistics().target == 64 * MIB


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"id": "vm1"}, "there is a VM 'vm1' already"),
        ({"socket-path": "{folder}/vm1.sock"}, "{folder}/vm1.sock is the socket of VM 'vm1'"),
        ({"socket-path": "{folder}/control"}, "{folder}/control is the control socket"),
        ({"socket-path": "{folder}/live"}, "in use"),
        ({"socket-path": "{folder}/file"}, "not a socket"),
        ({"socket-path": "{folder}"}, "not a socket"),
        ({"socket-path": "/"}, "not a socket"),
        ({"socket-path": "{folder}/no/a.sock"}, "No such file"),
        ({"socket-path": "/" + "x" * 300}, "too long"),
        ({"socket-path": "a.sock"}, "Parameter 'socket-path' expects an absolute path"),
        ({"socket-path": "/a\0b"}, "Parameter 'socket-path' expects an absolute path"),
        ({"socket-path": 5}, "Invalid parameter type for 'socket-path', expected: string"),
        ({"id": None}, "Invalid parameter type for 'id', expected: string"),
        ({"id": ""}, "Parameter 'id' cannot be ''"),
        ({"id": "control"}, "Parameter 'id' cannot be 'control'"),
        ({"id": "metrics"}, "Parameter 'id' cannot be 'metrics'"),
        ({"id": ".hidden"}, "Parameter 'id' cannot be '.hidden'"),
        ({"id": "a/b"}, "Parameter 'id' cannot be 'a/b'"),
        ({"id": "x" * 256}, "Parameter 'id' is too long"),
        ({"target": 0}, "Parameter 'target' expects a size above 0"),
        ({"target": "1G"}, "Invalid parameter type for 'target', expected: integer"),
        ({"reporting": 1}, "Invalid parameter type for 'reporting', expected: boolean"),
        ({"stats-interval": True}, "Invalid parameter type for 'stats-interval', expected: number"),
        ({"stats-interval": -1}, "Parameter 'stats-interval' expects a number of seconds"),
        ({"discard": "some"}, "Parameter 'discard' expects one of auto, always, never"),
        ({"socket-mode": "9"}, "Parameter 'socket-mode' expects a string of octal digits"),
        ({"socket-group": "no-such-group"}, "there is no group 'no-such-group'"),
        ({"frobnicate": 1}, "Parameter 'frobnicate' is unexpected"),
    ],
)  # fmt: skip
async def test_what_cannot_be_added_changes_nothing(
    tmp_path: Path, arguments: dict[str, Any], text: str
) -> None:
    (tmp_path / "file").touch()

    def put(value: Any) -> Any:
        return value.replace("{folder}", str(tmp_path)) if isinstance(value, str) else value

    given = {"id": "vm2", "socket-path": "{folder}/vm2.sock"} | arguments
    given = {key: put(value) for key, value in given.items()}
    with listening(tmp_path / "live"):
        async with operated(tmp_path, f"--socket-path={tmp_path}/vm1.sock") as (_, client):
            before = open_fds(), sorted(os.listdir(tmp_path)), await client.execute("query-vms")
            kind, found = await client.failure("vm-add", **given)
            assert kind == "GenericError"
            assert put(text) in found
            after = open_fds(), sorted(os.listdir(tmp_path)), await client.execute("query-vms")
            assert after == before


async def test_a_daemon_of_one_connection_serves_no_other_vm(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        async with operated(tmp_path, f"--fd={theirs.detach()}") as (host, client):
            (name,) = await ids(client)
            path = str(host.path())
            failure = await client.failure("vm-add", id="vm1", **{"socket-path": path})
            assert failure == (
                "GenericError",
                "this daemon serves the VM of --fd, and ends with it",
            )
            assert "has a front end" in (await client.failure("vm-del", id=name))[1]


# Memory that could shrink


@pytest.mark.parametrize("allowed", [False, True])
async def test_no_second_vm_beside_unsealed_memory(tmp_path: Path, allowed: bool) -> None:
    options = [f"--socket-path={tmp_path}/vm1.sock"]
    options += ["--allow-unsealed-memory"] if allowed else []
    async with operated(tmp_path, *options) as (host, client):
        async with by_hand(host.path(), GuestRam.create(64 * MIB, sealed=False)) as guest:
            if allowed:
                await add(client, host, "vm2")
            else:
                path = str(host.path("vm2"))
                _, text = await client.failure("vm-add", id="vm2", **{"socket-path": path})
                assert "the memory of VM 'vm1' is not sealed against shrinking" in text
                assert "--allow-unsealed-memory" in text
                assert not host.path("vm2").exists()
            await guest.works(host.vm())
        await eventually(lambda: not host.vm().attached)
        await add(client, host, "vm3")


async def test_the_sealing_rule_follows_the_number_of_vms(tmp_path: Path) -> None:
    async with operated(tmp_path, f"--socket-path={tmp_path}/vm1.sock") as (host, client):
        await add(client, host, "vm2")
        ram = GuestRam.create(64 * MIB, sealed=False)
        async with by_hand(host.path(), ram, features=None) as guest:
            with pytest.raises(Exception, match="37 was refused"):
                await guest.front_end.add_region(ram.regions[0])
            await client.execute("vm-del", id="vm2")
            await guest.front_end.add_region(ram.regions[0])
            await guest.start()
            await guest.works(host.vm())


# vm-del


async def test_a_vm_is_removed_with_all_that_it_had(tmp_path: Path) -> None:
    async with operated(tmp_path) as (host, client):
        before = open_fds()
        await add(client, host, "vm1")
        async with by_hand(host.path()) as guest:
            await guest.works(host.vm())
        await eventually(lambda: not host.vm().attached)
        assert await client.execute("vm-del", id="vm1") == {}
        assert (await ids(client), host.path().exists()) == ([], False)
        await eventually(lambda: open_fds() == before)
        await add(client, host, "vm1")
        assert host.vm().counters.inflated_bytes == 0, "it is another one"
        async with by_hand(host.path()) as guest:
            await guest.works(host.vm())


@pytest.mark.parametrize("origin", [Origin.COMMAND_LINE, Origin.CONFIG, Origin.CONTROL])
async def test_a_vm_of_any_origin_can_be_removed(tmp_path: Path, origin: Origin) -> None:
    path, file = tmp_path / "vm1.sock", tmp_path / "vms.toml"
    file.write_text(f'[vm.vm1]\nsocket-path = "{path}"')
    options = {Origin.COMMAND_LINE: [f"--socket-path={path}"], Origin.CONFIG: [f"--config={file}"]}
    async with operated(tmp_path, *options.get(origin, [])) as (host, client):
        if origin is Origin.CONTROL:
            await add(client, host, "vm1")
        assert host.vm().spec.origin is origin
        await client.execute("vm-del", id="vm1")
        assert not path.exists()


async def test_no_connection_is_ended_by_a_removal(tmp_path: Path) -> None:
    refusal = ("GenericError", "VM 'vm1' has a front end: it can be removed once that is gone")
    async with operated(tmp_path) as (host, client):
        await add(client, host, "vm1")
        async with by_hand(host.path()) as guest:
            assert await client.failure("vm-del", id="vm1") == refusal
            await guest.works(host.vm())
        assert (await client.failure("vm-del", id="vm2"))[0] == "DeviceNotFound"
        assert (await client.failure("vm-del"))[1] == "Parameter 'id' is missing"


@pytest.mark.parametrize("checkpoints", range(8))
async def test_a_front_end_that_has_just_connected_keeps_its_vm(
    tmp_path: Path, checkpoints: int, nursery: trio.Nursery
) -> None:
    """In the backlog, between the kernel's accept and ours, and attached: at every step."""
    machine = Machine()
    with Fleet(machine) as fleet, socket.socket(socket.AF_UNIX) as front_end:
        fleet.start(nursery)
        path = tmp_path / "vm1.sock"
        vm = fleet.add(VmSpec("vm1", socket_path=path))
        await trio.testing.wait_all_tasks_blocked()
        assert fleet.is_free(vm)
        front_end.connect(str(path))
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        with pytest.raises(CommandError, match="has a front end"):
            fleet.remove("vm1")
        await eventually(lambda: vm.attached)
        front_end.setblocking(False)
        with pytest.raises(BlockingIOError):
            front_end.recv(1)
        front_end.close()
        await eventually(lambda: fleet.is_free(vm))
        fleet.remove("vm1")
        assert (machine.vms, path.exists()) == ({}, False)
        nursery.cancel_scope.cancel()


async def test_a_vm_that_is_removed_before_its_task_has_run(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """As when a client sends both commands at once."""
    machine = Machine()
    with Fleet(machine) as fleet:
        fleet.start(nursery)
        for _ in range(3):
            fleet.add(VmSpec("vm1", socket_path=tmp_path / "vm1.sock"))
            fleet.remove("vm1")
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks, "their tasks have ended"
        vm = fleet.add(VmSpec("vm1", socket_path=tmp_path / "vm1.sock"))
        async with by_hand(tmp_path / "vm1.sock") as guest:
            assert vm.attached
            await guest.front_end.get_u64(1)
        nursery.cancel_scope.cancel()


async def test_a_front_end_that_waits_for_descriptors_keeps_its_vm(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:  # fmt: skip
    async def accept(listener: trio.SocketListener) -> trio.SocketStream:
        raise OSError(errno.EMFILE, "Too many open files")

    machine = Machine()
    with Fleet(machine) as fleet, socket.socket(socket.AF_UNIX) as front_end:
        fleet.start(nursery)
        vm = fleet.add(VmSpec("vm1", socket_path=tmp_path / "vm1.sock"))
        with monkeypatch.context() as patch:
            patch.setattr(trio.SocketListener, "accept", accept)
            front_end.connect(str(vm.socket_path))
            for _ in range(3):
                await trio.sleep(ACCEPT_PAUSE)
                assert not fleet.is_free(vm)
        with trio.fail_after(10):
            while not vm.attached:  # noqa: ASYNC110 - it tries again after a pause
                await trio.sleep(ACCEPT_PAUSE)
        nursery.cancel_scope.cancel()


# Metrics


LABELS = (("vm", "vm1"),)


async def series(host: Host) -> Samples:
    """Those of vm1."""
    return {
        key: value for key, value in (await scrape(host.machine)).items() if LABELS[0] in key[1]
    }


async def test_metrics_come_and_go_with_their_vm(tmp_path: Path) -> None:
    async with operated(tmp_path, f"--socket-path={tmp_path}/vm2.sock") as (host, client):
        await add(client, host, "vm1")
        found = await series(host)
        assert found["vhost_balloon_connected", LABELS] == 0
        assert found["vhost_balloon_inflated_bytes_total", LABELS] == 0
        assert len(found) > 30, "counters of every queue and reason, too"
        await client.execute("vm-del", id="vm1")
        assert (await series(host)) == {}
