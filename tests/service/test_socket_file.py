"""Creating and replacing a socket's file and setting its permissions touch only our sockets."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.hostile import tampering
from tests.support.hostile.tampering import REPLACED, Found, Kind, removed
from tests.support.huge_pages import need_root
from tests.support.socket_files import OPEN, after_call, before_call, listen, refusal
from vhost_balloon.errors import OperatorError
from vhost_balloon.service import listeners
from vhost_balloon.service.listeners import SocketOptions


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_nobody_can_connect_before_the_permissions_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    path, seen = tmp_path / "sock", []

    def watched(real: Callable[..., None]) -> Callable[..., None]:
        def watching(*arguments: object) -> None:
            with socket.socket(socket.AF_UNIX) as visitor:
                seen.append((visitor.connect_ex(str(path)), stat.S_IMODE(path.stat().st_mode)))
            real(*arguments)

        return watching

    for name in ("chmod", "chown"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    old = os.umask(umask)
    try:
        monkeypatch.setattr(os, "umask", None)  # the umask belongs to the whole process
        with listen(path, SocketOptions(0o666, "7")):
            monkeypatch.undo()
            info = path.stat()
            assert (stat.S_IMODE(info.st_mode), info.st_gid) == (0o666, 7)
    finally:
        os.umask(old)
    assert len(seen) == 3
    assert {error for error, _ in seen} == {errno.ECONNREFUSED}
    assert all(mode & 0o077 == 0 for _, mode in seen)


def test_no_one_gets_access_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    real = os.chown

    def chown(path: Path, uid: int, gid: int) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        real(path, uid, gid)

    monkeypatch.setattr(os, "chown", chown)
    with listen(tmp_path / "sock", SocketOptions(0o660, "7")) as file:
        modes.clear()
        for mode, group in ((0o606, 8), (0o660, 9), (0o600, 10)):
            listeners.change_access(file, SocketOptions(mode, str(group)))
            assert stat.S_IMODE(file.info().st_mode) == mode
            assert file.info().st_gid == group
    assert modes == [0o600, 0o600, 0o600]


@pytest.mark.parametrize("setgid", [False, True])
def test_without_a_group_the_file_gets_the_default(tmp_path: Path, setgid: bool) -> None:
    if setgid:
        os.chown(tmp_path, -1, 9)
        tmp_path.chmod(0o2755)
    with listen(tmp_path / "sock") as file:
        made = file.info().st_gid
        listeners.change_access(file, SocketOptions(0o660, "7"))
        assert file.info().st_gid == 7
        listeners.change_access(file, SocketOptions(0o660))
        assert file.info().st_gid == made == (9 if setgid else os.getegid())


@pytest.mark.parametrize("kind", [*REPLACED, removed], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("access", [OPEN, SocketOptions(0o666, "7")], ids=["mode", "group"])
def test_a_file_put_in_its_place_keeps_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, access: SocketOptions
) -> None:
    path, found = tmp_path / "sock", []
    with ExitStack() as stack:

        def act() -> None:
            kind(path, stack)
            found.append(Found.below(tmp_path))

        after_call(monkeypatch, "bind", act)
        with pytest.raises(OperatorError, match="cannot listen on"):
            listeners.listen(path, access)
        assert Found.below(tmp_path) == found[0]


@pytest.mark.parametrize("kind", [tampering.another_listens, removed])
def test_losing_the_path_before_listening_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Two daemons start at once: one takes the other's new socket for a stale one."""
    path = tmp_path / "sock"
    with ExitStack() as stack:
        before_call(monkeypatch, "listen", lambda: kind(path, stack))
        with pytest.raises(OperatorError, match="cannot listen on"):
            listeners.listen(path, OPEN)
        assert path.exists() == (kind is tampering.another_listens)


def test_nor_is_another_socket_of_the_same_user_opened_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user with write access to the folder can rename one over the other."""
    path, other = tmp_path / "sock", tmp_path / "other"
    with listen(other, SocketOptions(0o600)):
        after_call(monkeypatch, "bind", lambda: os.rename(other, path))
        with pytest.raises(OperatorError, match="another file was put in its place"):
            listeners.listen(path, OPEN)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", [*REPLACED, removed], ids=lambda kind: kind.__name__)
def test_nor_is_a_file_put_there_later(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "sock"
    with ExitStack() as stack, listen(path) as file:
        kind(path, stack)
        before = Found.below(tmp_path)
        with pytest.raises(OperatorError, match=f"cannot set the permissions of {path}: "):
            listeners.change_access(file, SocketOptions(0o600, "7"))
        file.remove()
        assert Found.below(tmp_path) == before


def test_an_error_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sock"
    for name in ("chmod", "chown"):

        def fail(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, name, fail)
        told = refusal(path, SocketOptions(0o600, "7"))
        assert told == f"cannot listen on {path}: Operation not permitted"
        monkeypatch.undo()
    assert "no group" in refusal(path, SocketOptions(0o600, "no-such-group"))


def test_without_proc_it_is_one_plain_line(tmp_path: Path) -> None:
    need_root("A ROOT WITHOUT /proc")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chroot(tmp_path)
            try:
                listeners.listen(Path("/sock"), OPEN)
            except OperatorError as error:
                os.write(write_end, str(error).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as answer:
        expected = "cannot listen on /sock: /proc is required and not mounted"
        assert answer.read() == expected
    assert list(tmp_path.iterdir()) == []
