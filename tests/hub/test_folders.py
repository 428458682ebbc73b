"""The VMs that the hub finds in its folders, and their names."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.end_to_end import LogLines
from tests.support.fakes.host_vms import daemons, good
from tests.support.fakes.unreadable import unreadable
from vhost_balloon.containment import InternalErrors
from vhost_balloon.hub.__main__ import CONNECTIONS, RESERVE, most_vms
from vhost_balloon.hub.folders import MAX_PROBLEMS, MAX_VMS, look
from vhost_balloon.hub.vms import HUB_PLACES, Host
from vhost_balloon.metrics.document import Document


def make(folder: Path, *names: str | bytes) -> None:
    """Make socket files without listeners."""
    folder.mkdir(exist_ok=True)
    before = os.getcwd()
    os.chdir(folder)  # so that long names fit into a socket's address
    try:
        for name in names:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(name)
    finally:
        os.chdir(before)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def snapshots(host: Host) -> dict[str, Document | None]:
    return dict(await host.snapshots())


def test_names_are_those_of_files_whatever_their_bytes(tmp_path: Path) -> None:
    make(
        tmp_path, "web1.control", "web.example.org.control", "control.control", ".hidden.control",
        ".control", "web2.sock", b"\xff.control", 'q"\\\n.control', " .control", "käse 🧀.control",
    )  # fmt: skip
    listing = look([tmp_path])
    assert set(listing.sockets) == {
        "web1", "web.example.org", "control", "\\udcff", 'q"\\\n', " ", "käse 🧀",
    }  # fmt: skip
    assert listing.problems == []


def test_of_two_equal_names_the_first_wins(tmp_path: Path) -> None:
    """A scrape with the same series twice is invalid."""
    first, second = tmp_path / "1", tmp_path / "2"
    make(first, "web1.control", b"\xff.control", "\\udcff.control")
    make(second, "web1.control", "web2.control")
    listing = look([first, second])
    assert [found.path for found in listing.sockets.values()] == [
        f"{first}/\\udcff.control", f"{first}/web1.control", f"{first}/\udcff.control",
        f"{second}/web2.control",
    ]  # fmt: skip
    assert list(listing.sockets) == ["\\x5cudcff", "web1", "\\udcff", "web2"]
    assert listing.problems == [
        f"{second}/web1.control is left out: {first}/web1.control has the same name; give its "
        "file another name (--control-socket=PATH)",
    ]


def test_a_folder_may_be_missing_or_closed(tmp_path: Path) -> None:
    make(tmp_path / "there", "web1.control")
    listing = look([tmp_path / "none", tmp_path / "there"])
    assert list(listing.sockets) == ["web1"]
    assert listing.problems == [f"no VMs in {tmp_path}/none: No such file or directory"]


def test_the_number_of_vms_is_limited_and_so_are_complaints(tmp_path: Path) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        make(folder, *(f"{number:03}.control" for number in range(100)))
    listing = look(folders, most=90)
    assert list(listing.sockets) == [f"{number:03}" for number in range(90)]
    assert listing.left_out == 20
    assert len(listing.problems) == MAX_PROBLEMS
    assert look(folders[:1], most=90).problems == ["10 VMs are left out: the limit is 90"]


def test_another_file_of_the_same_name_is_told_apart(tmp_path: Path) -> None:
    make(tmp_path, "web1.control")
    before = look([tmp_path]).sockets["web1"]
    assert look([tmp_path]).sockets["web1"] == before
    (tmp_path / "web1.control").unlink()
    time.sleep(0.02)  # the file system's clock ticks every 4 ms, and inode numbers are reused
    make(tmp_path, "web1.control")
    assert look([tmp_path]).sockets["web1"] != before


def test_the_limit_of_vms_leaves_descriptors_for_scrapers(few_descriptors: None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for soft, most in ((16, 1), (RESERVE + 50 * CONNECTIONS, 50)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert most_vms() == most
    enough = MAX_VMS * CONNECTIONS + RESERVE
    if hard > enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
        assert most_vms() == MAX_VMS


async def test_no_descriptor_for_a_vm_costs_that_vm(
    tmp_path: Path, few_descriptors: None, log_lines: LogLines
) -> None:
    host = Host([tmp_path], InternalErrors(HUB_PLACES))
    async with daemons(tmp_path, {f"web{number}": good() for number in range(9)}):
        await trio.to_thread.run_sync(int)  # opens the descriptors that threads need
        used = {int(name) for name in os.listdir("/proc/self/fd")}
        free = [number for number in range(max(used) + 20) if number not in used]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[8], hard))
        found = await snapshots(host)
        assert 0 < sum(document is not None for document in found.values()) < 9
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert None not in (await snapshots(host)).values()
    host.close()
    assert log_lines.having("no figures: Too many open files")
    assert log_lines.having("its daemon answers again")


async def test_a_vm_in_a_deep_folder_with_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    short = tmp_path / "s"
    host = Host([folder], InternalErrors(HUB_PLACES))
    async with daemons(tmp_path, {"s": good()}):
        (tmp_path / "s.control").rename(folder / f"{'n' * 200}.control")
        assert not short.exists()
        (document,) = (await snapshots(host)).values()
    host.close()
    assert document is not None


async def test_a_vm_does_not_continue_the_series_of_another_one(
    tmp_path: Path, log_lines: LogLines
) -> None:
    """As the name of their sockets is the same: that of the first is kept until both have gone."""
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    host = Host([first, second], InternalErrors(HUB_PLACES))
    async with daemons(second, {"balloon": good(2), "web2": good(3)}):
        async with daemons(first, {"balloon": good(1)}):
            documents = await snapshots(host)
            assert documents["balloon"] is not None
            assert documents["balloon"]["freed-bytes"] == 1 << 20
        (first / "balloon.control").unlink(missing_ok=True)
        for _ in range(2):
            assert list(await snapshots(host)) == ["web2"]
        gone = f"{second}/balloon.control is left out: it has the name of {first}/balloon.control"
        assert log_lines.having(f"warning: {gone}, which is gone", "(--control-socket=PATH)")
    (second / "balloon.control").unlink(missing_ok=True)
    await snapshots(host)
    async with daemons(second, {"balloon": good(2)}):
        documents = await snapshots(host)
        assert documents["balloon"] is not None, "the name is free again"
    host.close()


async def test_a_problem_is_logged_once_while_it_lasts(tmp_path: Path, log_lines: LogLines) -> None:
    folder = tmp_path / "later"
    host = Host([folder], InternalErrors(HUB_PLACES))
    missing = f"warning: no VMs in {folder}: No such file or directory"
    for _ in range(3):
        assert await snapshots(host) == {}
    assert log_lines.lines == [missing]
    folder.mkdir()
    assert await snapshots(host) == {}
    folder.rmdir()
    assert await snapshots(host) == {}
    assert log_lines.lines == [missing] * 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_folder_that_cannot_be_read_keeps_its_vms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    make(first, "web1.control", "web2.control", "web3.control")
    make(second, "web9.control")
    before = look([first, second])
    (first / "web2.control").unlink()
    (second / "web9.control").unlink()
    make(second, "web1.control", "web8.control")
    unreadable(first, monkeypatch, number, also="web3.control")
    listing = look([first, second], known=before.sockets)
    assert [*listing.sockets] == ["web1", "web3", "web8"]
    assert listing.sockets["web1"] == before.sockets["web1"]
    assert listing.failure == f"{first} cannot be read: {os.strerror(number)}"
    assert listing.problems[0] == listing.failure
    assert [*look([first, second]).sockets] == ["web1", "web8"], "none is known"


def test_a_socket_that_cannot_be_looked_at_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "web1.control", "web2.control")
    unreadable(tmp_path / "other", monkeypatch, errno.EACCES, also=str(tmp_path / "web2.control"))
    listing = look([tmp_path])
    assert [*listing.sockets] == ["web1"]
    assert listing.problems == [f"{tmp_path}/web2.control cannot be read: Permission denied"]
