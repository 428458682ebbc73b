"""config-reload: what follows from another file, and that a mistake changes nothing."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol.virtio_balloon import BalloonFeature
from tests.command import listening
from tests.control_client import Client
from tests.end_to_end import MIB, LogLines, by_hand, eventually, open_fds
from tests.test_control_fleet import add, ids, operated
from tests.test_control_vms import check, schema_of
from vhost_balloon.simulator import GuestRam

NOTHING: dict[str, list[str]] = {
    "added": [],
    "removed": [],
    "leaving": [],
    "changed": [],
    "kept": [],
}


class File:
    """The file of --config; VMs are given with their settings, their sockets lie beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "vms.toml"
        self.option = f"--config={self.path}"

    def write(self, *, defaults: str = "", **vms: str) -> None:
        text = f"[defaults]\n{defaults}\n"
        for name, settings in vms.items():
            text += f"[vm.{name}]\nsocket-path = '{self.folder}/{name}.sock'\n{settings}\n"
        self.path.write_text(text)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path)


async def reload(client: Client, **changes: list[str]) -> None:
    assert await client.execute("config-reload") == NOTHING | changes


async def test_the_same_file_changes_nothing(tmp_path: Path, file: File) -> None:
    file.write(a="", b="")
    async with operated(tmp_path, file.option) as (host, client):
        schema = await schema_of(client)
        a = host.vm("a")
        await reload(client, kept=["a", "b"])
        check(schema, schema["config-reload"]["ret-type"], await client.execute("config-reload"))
        assert host.vm("a") is a
        assert a.spec.origin.value == "config"


async def test_vms_come_and_go(tmp_path: Path, file: File) -> None:
    file.write()
    async with operated(tmp_path, file.option, f"--socket-path={tmp_path}/mine.sock") as (
        host,
        client,
    ):
        await add(client, host, "added")
        file.write(a="", b="")
        await reload(client, added=["a", "b"])
        async with by_hand(host.path("b")) as guest:
            await guest.works(host.vm("b"))
        await eventually(lambda: not host.vm("b").attached)
        file.write(b="", c="")
        await reload(client, added=["c"], removed=["a"], kept=["b"])
        assert not host.path("a").exists()
        assert await ids(client) == ["mine", "added", "b", "c"]
        await client.execute("vm-del", id="b")
        await reload(client, added=["b"], kept=["c"])


async def test_changed_settings(tmp_path: Path, file: File) -> None:
    file.write(a="", b="")
    async with operated(tmp_path, file.option) as (host, client):
        async with by_hand(host.path("a")) as guest:
            file.write(
                a="stats-interval = 5\nsocket-mode = '0666'\nreporting = false\ntarget = '32M'",
                b="",
            )
            await reload(client, changed=["a"], kept=["b"])
            vm = host.vm("a")
            assert vm.stats_interval == 5, "at once"
            assert stat.S_IMODE(host.path("a").stat().st_mode) == 0o666
            assert vm.statistics().target == 64 * MIB, "for the next front end"
            await guest.works(vm)
        await eventually(lambda: not vm.attached)
        async with by_hand(host.path("a"), features=None) as guest:
            assert vm.statistics().target == 32 * MIB
            assert vm.connection is not None
            assert not vm.connection.session.offered & BalloonFeature.PAGE_REPORTING


async def test_an_interval_that_an_operator_set_is_kept_unless_the_file_says_another(
    tmp_path: Path, file: File
) -> None:
    file.write(a="stats-interval = 5")
    async with operated(tmp_path, file.option) as (host, client):
        host.vm("a").stats_interval = 1
        file.write(a="stats-interval = 5\ntarget = '1G'")
        await reload(client, changed=["a"])
        assert host.vm("a").stats_interval == 1
        file.write(a="stats-interval = 6\ntarget = '1G'")
        await reload(client, changed=["a"])
        assert host.vm("a").stats_interval == 6


async def test_defaults_are_those_of_added_vms_too(tmp_path: Path, file: File) -> None:
    file.write(defaults="stats-interval = 5")
    async with operated(tmp_path, file.option, "--no-reporting") as (host, client):
        await add(client, host, "one")
        file.write(defaults="stats-interval = 6\nreporting = true")
        await reload(client)
        await add(client, host, "two")
        one, two = (vm["settings"] for vm in await client.execute("query-vms"))
        assert (one["stats-interval"], one["reporting"]) == (5, False)
        assert (two["stats-interval"], two["reporting"]) == (6, True)


async def test_another_path(tmp_path: Path, file: File) -> None:
    file.write(a="")
    async with operated(tmp_path, file.option) as (host, client):
        file.path.write_text(f"[vm.a]\nsocket-path = '{host.path('b')}'")
        await reload(client, changed=["a"])
        assert sorted(os.listdir(tmp_path)) == ["b.sock", "control", "vms.toml"]
        async with by_hand(host.path("b")) as guest:
            await guest.works(host.vm("a"))


# With a front end


async def test_a_vm_that_vanished_leaves_with_its_front_end(tmp_path: Path, file: File) -> None:
    file.write(a="")
    async with operated(tmp_path, file.option) as (host, client):
        async with by_hand(host.path("a")) as guest:
            file.write()
            await reload(client, leaving=["a"])
            await reload(client, leaving=["a"])
            (vm,) = await client.execute("query-vms")
            assert vm["attached"]
            await guest.works(host.vm("a"))
        await eventually(lambda: not host.machine.vms)
        assert not host.path("a").exists()
        file.write(a="")
        await reload(client, added=["a"])


async def test_a_vm_that_came_back_in_time_stays(tmp_path: Path, file: File) -> None:
    file.write(a="")
    async with operated(tmp_path, file.option) as (host, client):
        async with by_hand(host.path("a")):
            file.write()
            await reload(client, leaving=["a"])
            file.write(a="")
            await reload(client, kept=["a"])
        await eventually(lambda: not host.vm("a").attached)
        async with by_hand(host.path("a")) as guest:
            await guest.works(host.vm("a"))


async def test_another_path_of_a_vm_in_use(tmp_path: Path, file: File, log_lines: LogLines) -> None:
    file.write(a="")
    async with operated(tmp_path, file.option) as (host, client):
        async with by_hand(host.path("a")) as guest:
            file.path.write_text(f"[vm.a]\nsocket-path = '{host.path('b')}'")
            await reload(client, leaving=["a"])
            assert not host.path("b").exists()
            await guest.works(host.vm("a"))
        await eventually(host.path("b").exists)
        async with by_hand(host.path("b")) as guest:
            await guest.works(host.vm("a"))
            file.path.write_text(f"[vm.a]\nsocket-path = '{host.path('c')}'")
            await reload(client, leaving=["a"])
            taken = listening(host.path("c"))
        await eventually(lambda: not host.machine.vms)
        assert log_lines.having("warning: a: cannot be added again", "c.sock is in use")
        taken.close()


async def test_one_that_waits_is_served_before_its_vm_leaves(tmp_path: Path, file: File) -> None:
    file.write(a="")
    async with operated(tmp_path, file.option) as (host, client):
        vm = host.vm("a")
        with socket.socket(socket.AF_UNIX) as waiting:
            async with by_hand(host.path("a")):
                waiting.connect(str(host.path("a")))
                file.write()
                await reload(client, leaving=["a"])
            await eventually(lambda: vm.attached and vm.statistics().guest_memory == 0)
            assert host.machine.vms == {"a": vm}
        await eventually(lambda: not host.machine.vms)


async def test_reloads_at_the_same_time_come_one_after_the_other(
    tmp_path: Path, file: File
) -> None:
    file.write()
    async with operated(tmp_path, file.option) as (host, client):
        file.write(**{f"vm{number}": "" for number in range(30)})
        answers: list[dict[str, list[str]]] = []

        async def again() -> None:
            async with await trio.open_unix_socket(tmp_path / "control") as stream:
                other = Client(stream)
                await other.negotiate()
                answers.append(await other.execute("config-reload"))

        async with trio.open_nursery() as clients:
            for _ in range(4):
                clients.start_soon(again)
        assert sorted(len(answer["added"]) for answer in answers) == [0, 0, 0, 30]
        assert sorted(len(answer["kept"]) for answer in answers) == [0, 30, 30, 30]
        assert len(host.machine.vms) == 30
        await reload(client, kept=list(host.machine.vms))


# Mistakes


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[vm.a\n", 1, "Expected ']'"),
        ("{a}{b}\ntarget = 0", 6, "'target' expects"),
        ("{a}[vm.b]\nsocket-path = '{folder}/live'", 4, "in use"),
        ("{b}[vm.new]\nsocket-path = '{folder}/new.sock'\n[vm.c]\nsocket-path = '/no/a'", 6, "No"),
        ("[vm.mine]\nsocket-path = '{folder}/x.sock'", 1, "two VMs are named 'mine'"),
        ("\n[vm.x]\nsocket-path = '{folder}/mine.sock'", 3, "given for two sockets"),
        ("\n[vm.x]\nsocket-path = '{folder}/control'", 3, "given for two sockets"),
        ("[vm.x]\nsocket-path = '{folder}/a.sock'", 2, "a.sock is the socket of VM 'a'"),
        ("{b}{a}socket-group = 'no-such'\n", 4, "there is no group 'no-such'"),
        ("[vm.b]\nsocket-path = '{folder}/bb.sock'\nsocket-group = 'no-such'\n", 2, "no group"),
    ],
)
async def test_a_mistake_changes_nothing(
    tmp_path: Path, file: File, text: str, line: int, what: str
) -> None:
    file.write(a="", b="")
    parts = {
        "folder": str(tmp_path),
        "a": f"[vm.a]\nsocket-path = '{tmp_path}/a.sock'\n",
        "b": f"[vm.b]\nsocket-path = '{tmp_path}/b.sock'\n",
    }
    mine = f"--socket-path={tmp_path}/mine.sock"
    with listening(tmp_path / "live"):
        async with operated(tmp_path, file.option, mine) as (host, client):
            vms = dict(host.machine.vms)
            before = await state(client, tmp_path)
            file.path.write_text(text.format(**parts))
            kind, found = await client.failure("config-reload")
            assert kind == "GenericError"
            assert found.startswith(f"{file.path}: line {line}: ")
            assert what in found
            assert await state(client, tmp_path) == before
            assert host.machine.vms == vms
            file.write(a="", b="")
            await reload(client, kept=["a", "b"])


async def state(client: Client, folder: Path) -> Any:
    return await client.execute("query-vms"), sorted(os.listdir(folder)), open_fds()


async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path, file: File) -> None:
    file.write(a="")
    async with operated(tmp_path, file.option) as (_, client):
        file.path.unlink()
        _, text = await client.failure("config-reload")
        assert text == f"cannot read {file.path}: No such file or directory"
        assert await ids(client) == ["a"]


async def test_there_is_nothing_to_read_without_config(tmp_path: Path) -> None:
    async with operated(tmp_path) as (_, client):
        failure = await client.failure("config-reload")
        assert failure == ("GenericError", "this daemon was started without --config")


async def test_unsealed_memory_forbids_a_second_vm(tmp_path: Path, file: File) -> None:
    file.write(a="")
    async with (
        operated(tmp_path, file.option) as (host, client),
        by_hand(host.path("a"), GuestRam.create(64 * MIB, sealed=False)) as guest,
    ):
        file.write(a="", b="")
        _, text = await client.failure("config-reload")
        assert text.startswith(f"{file.path}: line 7: the memory of VM 'a' is not sealed")
        assert await ids(client) == ["a"]
        assert not host.path("b").exists()
        await guest.works(host.vm("a"))


async def test_a_socket_whose_file_was_taken_away(
    tmp_path: Path, file: File, log_lines: LogLines
) -> None:
    file.write(a="")
    async with operated(tmp_path, file.option) as (host, client):
        host.path("a").unlink()
        file.write(a="socket-mode = '0666'")
        await reload(client, changed=["a"])
        assert log_lines.having("warning: a:", "No such file")
