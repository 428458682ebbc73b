"""config-reload applies changed files, and changes nothing after a mistake."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol.virtio_balloon import BalloonFeature
from tests.support.control_client import Client, check, schema_of
from tests.support.end_to_end import (
    MIB,
    Host,
    LogLines,
    by_hand,
    eventually,
    open_fds,
)
from tests.support.hostile.tampering import Found
from tests.support.vms.operated import operated
from vhost_balloon.config import in_time
from vhost_balloon.config.toml_file import MAX_SIZE
from vhost_balloon.daemon import reload as reload_module
from vhost_balloon.front_end.connection import FrontEndConnection
from vhost_balloon.vm.settings import SETTINGS, VmSettings


class File:
    """An empty file for --config."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.option = f"--config={path}"
        self.write("")

    def write(self, text: str) -> None:
        self.path.write_text(text)

    def become(self, make: Callable[[Path], object]) -> None:
        """Another file."""
        self.path.unlink()
        make(self.path)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "vm1.toml")


async def reload(client: Client, *changed: str) -> None:
    assert await client.execute("config-reload") == {"changed": list(changed)}


async def settings(client: Client) -> Any:
    (vm,) = await client.execute("query-vms")
    return vm["settings"]


async def test_the_same_file_changes_nothing(tmp_path: Path, file: File) -> None:
    file.write("stats-interval = 5\n")
    async with operated(tmp_path, file.option) as (host, client):
        schema = await schema_of(client)
        await reload(client)
        check(schema, schema["config-reload"]["ret-type"], await client.execute("config-reload"))
        assert host.vm().stats_interval == 5


async def test_all_settings_are_shown(tmp_path: Path, file: File) -> None:
    said = {
        "reporting": False, "deflate-on-oom": False, "stats": True, "must-tell-host": True,
        "free-page-hint": False, "page-poison": True, "discard": "always",
        "discard-hugetlb": True, "discard-other-filesystems": True, "stats-interval": 2.5,
        "memory": 64 * MIB, "target": 32 * MIB, "report-rate": 1, "socket-mode": "0666",
        "socket-group": "0",
    }  # fmt: skip
    assert set(said) == set(SETTINGS)
    async with operated(tmp_path, file.option, "--no-page-poison") as (_, client):
        assert (await settings(client))["page-poison"] is False, "from the command line"
        file.write("".join(f"{key} = {json.dumps(value)}\n" for key, value in said.items()))
        answer = await client.execute("config-reload")
        assert set(answer["changed"]) == set(said) - {"stats", "must-tell-host"}
        (vm,) = await client.execute("query-vms")
        assert vm["settings"] == said
        assert vm["stats-interval"] == 2.5
        check(await schema_of(client), "VmInfo", vm)


async def test_changed_settings(tmp_path: Path, file: File) -> None:
    async with operated(tmp_path, file.option) as (host, client):
        vm = host.vm()
        async with by_hand(host.path()) as guest:
            file.write(
                "stats-interval = 5\nsocket-mode = '0666'\nreporting = false\ntarget = '32M'\n"
            )
            await reload(client, "reporting", "stats-interval", "target", "socket-mode")
            assert vm.stats_interval == 5, "applies at once"
            assert stat.S_IMODE(host.path().stat().st_mode) == 0o666
            assert vm.statistics().target == 64 * MIB, "applies to the next front end"
            await guest.works(vm)
        await eventually(lambda: not vm.attached)
        async with by_hand(host.path(), features=None):
            assert vm.statistics().target == 32 * MIB
            assert isinstance(vm.front_end, FrontEndConnection)
            assert not vm.front_end.session.offered & BalloonFeature.PAGE_REPORTING


async def test_a_setting_that_can_only_be_a_mistake_is_applied_with_a_warning(
    tmp_path: Path, file: File, log_lines: LogLines
) -> None:
    """A VM that waits at a restart must not be lost to it."""
    file.write("target = 1024\n")
    async with operated(tmp_path, file.option, "--report-rate=512") as (host, client):
        assert log_lines.having("warning: vm1: 'target': 1024 is 1 KiB", "write 1024M for MiB")
        assert log_lines.having("warning: vm1: 'report-rate': 512 B a second")
        file.write("target = '64M'\nstats-interval = 10000\n")
        await reload(client, "stats-interval", "target")
        assert log_lines.having("warning: vm1: 'stats-interval': 10000 s are 2.8 hours")
        assert host.vm().stats_interval == 10_000


async def test_a_setting_removed_from_the_file_falls_back_to_the_command_line(
    tmp_path: Path, file: File
) -> None:
    other = File(tmp_path / "other.toml")
    file.write("stats-interval = 5\nreporting = true\n")
    other.write("stats-interval = 6\n")
    options = (file.option, other.option, "--no-reporting", "--stats-interval=7")
    async with operated(tmp_path, *options) as (host, client):
        assert host.vm().stats_interval == 6, "the later file wins"
        other.write("")
        await reload(client, "stats-interval")
        assert host.vm().stats_interval == 5
        file.write("")
        await reload(client, "reporting", "stats-interval")
        assert host.vm().stats_interval == 7
        assert (await settings(client))["reporting"] is False


async def test_an_ordered_interval_holds_until_the_file_changes_it(
    tmp_path: Path, file: File
) -> None:
    file.write("stats-interval = 5\n")
    async with operated(tmp_path, file.option) as (host, client):
        host.vm().stats_interval = 1
        file.write("stats-interval = 5\ntarget = '1G'\n")
        await reload(client, "target")
        assert host.vm().stats_interval == 1
        file.write("stats-interval = 6\ntarget = '1G'\n")
        await reload(client, "stats-interval")
        assert host.vm().stats_interval == 6


async def test_reloads_at_the_same_time_come_one_after_the_other(
    tmp_path: Path, file: File
) -> None:
    async with operated(tmp_path, file.option) as (host, _):
        file.write("stats-interval = 5\n")
        answers: list[list[str]] = []

        async def again() -> None:
            async with await trio.open_unix_socket(tmp_path / "control") as stream:
                other = Client(stream)
                await other.negotiate()
                answers.append((await other.execute("config-reload"))["changed"])

        async with trio.open_nursery() as clients:
            for _ in range(4):
                clients.start_soon(again)
        assert sorted(answers) == [[], [], [], ["stats-interval"]]
        assert host.vm().stats_interval == 5


async def test_a_hanging_file_system_delays_nothing_else(
    tmp_path: Path, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    def hang(*_: object) -> None:
        goes_on.wait(20)

    try:
        async with (
            operated(tmp_path, file.option) as (host, client),
            by_hand(host.path()) as guest,
        ):
            monkeypatch.setattr(reload_module, "read_files", hang)
            await client.stream.send_all(b'{"execute": "config-reload"}')
            await guest.works(host.vm())
            async with await trio.open_unix_socket(tmp_path / "control") as stream:
                other = Client(stream)
                await other.negotiate()
                assert await other.execute("query-balloon")
        # the daemon has ended, although the file system hangs
        assert not goes_on.is_set()
    finally:
        goes_on.set()


async def test_a_hanging_file_system_is_given_up(
    tmp_path: Path, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    looks = []

    def hang(*_: object) -> VmSettings:
        looks.append(1)
        goes_on.wait(20)
        return VmSettings(stats_interval=7)

    async with operated(tmp_path, file.option) as (host, client):
        try:
            with monkeypatch.context() as patch:
                patch.setattr(reload_module, "read_files", hang)
                patch.setattr(in_time, "PATIENCE", 0.05)
                for _ in range(2):
                    _, text = await client.failure("config-reload")
                    assert text == f"cannot read {file.path} within 0.05 s: the file system hangs"
            assert len(looks) == 1, "one thread hangs"
        finally:
            goes_on.set()
        file.write("stats-interval = 5\n")
        await reload(client, "stats-interval")
        assert host.vm().stats_interval == 5


# Mistakes


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[vm.a\n", 1, "Expected ']'"),
        ("\nstats-interval = 6\ntarget = 0", 3, "'target' expects"),
        ("target = '1G'\nfrobnicate = 1", 2, "'frobnicate' is not known"),
        ("stats-interval = -1", 1, "'stats-interval' expects"),
        ("\nsocket-path = '/run/other.sock'", 2, "give --socket-path"),
        ("stats-interval = 6\n[vm.web1]\ntarget = '1G'", 2, "write one file for each VM"),
        ("[defaults]\ntarget = '1G'", 1, "write one file for each VM"),
        ("stats-interval = 6\nreporting = '\xff'", 2, "expects true or false"),
    ],
)
async def test_a_mistake_changes_nothing(
    tmp_path: Path, file: File, text: str, line: int, what: str
) -> None:
    file.write("stats-interval = 5\n")
    async with operated(tmp_path, file.option) as (host, client):
        before = await state(client, tmp_path)
        file.write(text)
        kind, found = await client.failure("config-reload")
        assert kind == "GenericError"
        assert found.startswith(f"{file.path}: line {line}: ")
        assert what in found
        assert await state(client, tmp_path) == before
        await is_unharmed(host)
        file.write("stats-interval = 5\n")
        await reload(client)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "cannot read {file}: No such file or directory"),
        (lambda path: path.mkdir(), "cannot read {file}: Is a directory"),
        (os.mkfifo, "{file} is not a regular file"),
        (lambda path: path.symlink_to(path), "cannot read {file}: Too many levels of symbolic"),
        (lambda path: path.write_text("#" * (MAX_SIZE + 1)), "{file} is larger than 64 KiB"),
        (lambda path: path.write_bytes(b"\xff"), "{file}: line 1: not UTF-8"),
        (lambda path: path.write_text("socket-group = 'no-such'"), "there is no group 'no-such'"),
    ],
)
async def test_a_file_that_cannot_be_used_changes_nothing(
    tmp_path: Path, file: File, make: Any, what: str
) -> None:
    """Nor does a correct file before it."""
    first = File(tmp_path / "first.toml")
    async with operated(tmp_path, first.option, file.option) as (host, client):
        file.become(make)
        first.write("stats-interval = 5\nsocket-mode = '0666'\n")
        before = await state(client, tmp_path)
        kind, found = await client.failure("config-reload")
        assert (kind, what.format(file=file.path) in found) == ("GenericError", True), found
        assert await state(client, tmp_path) == before
        await is_unharmed(host)


async def state(client: Client, folder: Path) -> Any:
    return await client.execute("query-vms"), Found.below(folder), open_fds()


async def is_unharmed(host: Host) -> None:
    async with by_hand(host.path()) as guest:
        await guest.works(host.vm())


async def test_without_config_there_is_nothing_to_read(tmp_path: Path) -> None:
    async with operated(tmp_path) as (_, client):
        failure = await client.failure("config-reload")
        assert failure == ("GenericError", "this daemon was started without --config")


async def test_a_socket_whose_file_was_taken_away(
    tmp_path: Path, file: File, log_lines: LogLines
) -> None:
    async with operated(tmp_path, file.option) as (host, client):
        host.path().unlink()
        file.write("socket-mode = '0666'")
        await reload(client, "socket-mode")
        assert log_lines.having("warning: vm1:", "No such file")
