"""Tampered socket paths, at the daemon's end and after an upgrade or a restart.

The front-end socket and the control socket, in two folders, are tampered with in different ways.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import COMMAND, listening
from tests.support.end_to_end import LogLines, by_hand, eventually, serving
from tests.support.hostile.tampering import (
    EVERY,
    Found,
    Kind,
    a_link_to_it,
    another_listened,
    another_listens,
    folder_replaced,
    removed,
)
from tests.support.huge_pages import need_root
from tests.support.restarting.scenario import hosting
from tests.support.restarting.service_manager import ServiceManager


@dataclass(frozen=True)
class Place:
    """Two folders with one socket each."""

    folder: Path
    vm: Path
    control: Path

    @classmethod
    def below(cls, folder: Path) -> Place:
        for name in ("vm", "control"):
            (folder / name).mkdir()
        return cls(folder, folder / "vm/vm1.sock", folder / "control/it")

    @property
    def options(self) -> tuple[str, str]:
        """Options that override earlier ones."""
        return f"--socket-path={self.vm}", f"--control-socket={self.control}"


@pytest.fixture
def place() -> Iterator[Place]:
    """In a folder with a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Place.below(Path(folder))


@contextmanager
def managed(place: Place, *options: str, limit: int = 16) -> Iterator[ServiceManager]:
    """A daemon under a service manager, which stores nothing if limit is 0."""
    with ServiceManager("--stats-interval=0", *place.options, *options, limit=limit) as manager:
        try:
            yield manager
        except BaseException:
            print(manager.log.read_text())  # pytest shows it if the test fails
            raise


async def upgrade(manager: ServiceManager) -> None:
    """Have the daemon re-execute in place; wait until it serves again."""

    def served() -> int:
        return manager.log.read_text().count("info: serving")

    before = served()
    manager.process.send_signal(signal.SIGHUP)
    await eventually(lambda: served() > before)


def ended_well(manager: ServiceManager) -> None:
    assert manager.stop(signal.SIGTERM) == 0
    assert "Traceback" not in manager.log.read_text()


def following(kind: Kind) -> Kind:
    """Another kind, so that every kind is applied to both sockets."""
    return EVERY[(EVERY.index(kind) + 5) % len(EVERY)]


every = pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
some = pytest.mark.parametrize(
    "kind",
    [another_listens, another_listened, a_link_to_it, folder_replaced, removed],
    ids=lambda kind: kind.__name__,
)
"""One of each group: starting a process for all of them would take too long."""


# At the end


async def test_its_sockets_are_removed_at_its_end(place: Place) -> None:
    async with serving(place.folder, f"--control-socket={place.control}") as host:
        assert host.path().is_socket()
        assert place.control.is_socket()
    assert not host.path().exists()
    assert not place.control.exists()


@every
async def test_a_file_in_the_sockets_place_stays_at_the_end(
    place: Place, kind: Kind, log_lines: LogLines
) -> None:
    with ExitStack() as stack:
        async with serving(place.vm.parent, f"--control-socket={place.control}"):
            kind(place.vm, stack)
            following(kind)(place.control, stack)
            before = Found.below(place.folder)
        assert Found.below(place.folder) == before
    assert not log_lines.having("Traceback")


@some
async def test_it_stays_after_an_upgrade_too(place: Place, kind: Kind) -> None:
    with ExitStack() as stack, managed(place, limit=0) as manager:
        await upgrade(manager)
        kind(place.vm, stack)
        following(kind)(place.control, stack)
        before = Found.below(place.folder)
        ended_well(manager)
        assert Found.below(place.folder) == before


async def test_after_upgrades_its_sockets_are_removed_at_its_end(place: Place) -> None:
    with managed(place, limit=0) as manager:
        await upgrade(manager)
        await upgrade(manager)
        ended_well(manager)
        assert not place.vm.exists()
        assert not place.control.exists()


ANEW = ("another_listened", "removed")
"""Kinds that a new socket may replace: a stale socket, or nothing."""


@some
@pytest.mark.parametrize("limit", [0, 16], ids=["upgrade", "restart"])
async def test_a_front_end_outlives_the_loss_of_its_path(
    place: Place, kind: Kind, limit: int
) -> None:
    """Sockets that can be opened again are; others are left and reported. The VM is still
    served."""
    with ExitStack() as stack, managed(place, limit=limit) as manager:
        async with by_hand(place.vm) as guest:
            await guest.inflate([5000])
            kind(place.vm, stack)
            before = Found.below(place.folder)
            if limit:
                manager.kill()
            else:
                await upgrade(manager)
            await guest.inflate([5001])
            if kind.__name__ in ANEW:
                assert place.vm.is_socket()
            else:
                assert Found.below(place.folder) == before
                assert re.search(
                    f"error: .*{place.vm}.*: no other front end can connect",
                    manager.log.read_text(),
                )
            await guest.start(bases=await guest.stop())
            await guest.inflate([5002])
        if kind.__name__ in ANEW:
            async with by_hand(place.vm) as guest:
                await guest.inflate([5000])
        ended_well(manager)
        ours = (place.control, *([place.vm] if kind.__name__ in ANEW else []))
        assert Found.below(place.folder).without(*ours) == before.without(*ours)
        assert [path.exists() for path in ours] == [limit > 0] * len(ours), "for the next process"


async def test_the_next_front_end_is_served_once_the_path_is_free(place: Place) -> None:
    again = (
        f"error: {place.vm} is in use: another process listens on it; trying again until it works"
    )
    with managed(place) as manager, ExitStack() as stack:
        async with by_hand(place.vm) as guest:
            await guest.inflate([5000])
            place.vm.unlink()
            taken = stack.enter_context(listening(place.vm))
            manager.kill()
            await guest.inflate([5001])
        await eventually(lambda: again in manager.log.read_text())
        taken.close()
        await eventually(lambda: is_served(place.vm))
        async with by_hand(place.vm) as guest:
            await guest.inflate([5002])
            manager.kill()
            await guest.inflate([5003])
        ended_well(manager)
        assert manager.log.read_text().count(again) == 1


def is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


@pytest.mark.parametrize("number", [1, 13, 16, 30])
async def test_a_failed_removal_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines, number: int
) -> None:
    def unlink(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    async with serving(tmp_path, f"--control-socket={tmp_path}/control"):
        monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.undo()
    for name in ("vm1.sock", "control"):
        path = tmp_path / name
        assert path.is_socket()
        assert log_lines.having("warning", f"cannot remove {path}: {os.strerror(number)}")


def test_a_file_system_that_became_read_only(tmp_path: Path) -> None:
    need_root("A READ-ONLY FILE SYSTEM")
    path = tmp_path / "vm1.sock"
    bind = f'mount --bind "{tmp_path}" "{tmp_path}" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", bind, "sh", *COMMAND, f"--socket-path={path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "serving" in process.stderr.readline()
            own = ["nsenter", f"--target={process.pid}", "--mount"]
            subprocess.run([*own, "mount", "-o", "remount,bind,ro", tmp_path], check=True)
            process.terminate()
            assert process.wait(10) == 0
            (warning,) = [line for line in process.stderr if line.startswith("warning")]
            assert warning == f"warning: cannot remove {path}: Read-only file system\n"
        finally:
            process.kill()
    ro = bind.replace("&&", f'&& mount -o remount,bind,ro "{tmp_path}" &&')
    done = subprocess.run(
        [*command[:4], ro, "sh", *COMMAND, f"--socket-path={tmp_path}/new.sock"],
        capture_output=True,
        text=True,
        check=False,
    )
    told = f"vhost-balloon: cannot listen on {tmp_path}/new.sock: Read-only file system\n"
    assert (done.returncode, done.stderr) == (2, told)


# The next process


async def test_another_path_takes_the_first_ones_socket_along(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        host.manager.stop(signal.SIGKILL)
        other = tmp_path / "other.sock"
        moved = (f"--socket-path={other}", "--name=vm1")
        host.manager.options = (*host.manager.options[1:], *moved)
        host.manager.start()
        assert not host.path().exists()
        async with by_hand(other) as guest:
            await guest.inflate([5000])


async def test_but_not_a_file_in_its_place(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        host.manager.stop(signal.SIGKILL)
        other = tmp_path / "other.sock"
        host.manager.options = (*host.manager.options[1:], f"--socket-path={other}", "--name=vm1")
        host.path().unlink()
        with listening(host.path()):
            host.manager.start()
            assert host.path().is_socket()
        async with by_hand(other) as guest:
            await guest.inflate([5000])
