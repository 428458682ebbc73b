"""What lies at a socket's path: only a stale socket of our own user is replaced."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.command import listening
from tests.support.hostile import tampering
from tests.support.hostile.tampering import REPLACED, Found, Kind
from tests.support.huge_pages import need_root
from tests.support.socket_files import OPEN, after_call, before_call, listen, refusal
from vhost_balloon.errors import OperatorError
from vhost_balloon.service import listeners


def test_a_stale_socket_of_our_user_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as old:
            old.bind(str(path))
        with listen(path) as file, socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(path))
            file.remove()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (tampering.another_listens, "is in use: another process listens on it"),
        (tampering.another_type, "is in use: another process has a socket of another type there"),
        (tampering.a_file, "exists and is not a socket"),
        (tampering.a_folder, "exists and is not a socket"),
        (tampering.a_fifo, "exists and is not a socket"),
        (tampering.a_link_to_it, "is not a socket: the name is in use for a symbolic link"),
        (tampering.a_link_to_a_file, "a symbolic link"),
        (tampering.a_link_to_another, "a symbolic link"),
        (tampering.a_dangling_link, "a symbolic link"),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_anything_else_is_not(tmp_path: Path, kind: Kind, text: str) -> None:
    path = tmp_path / "sock"
    listening(path).close()
    with ExitStack() as stack:
        kind(path, stack)
        told = refusal(path)
        assert told.startswith(f"{path} ")
        assert text in told


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_nor_a_living_socket_of_another_type(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        assert "a socket of another type" in refusal(path)


def test_nor_one_whose_backlog_is_full(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with ExitStack() as stack, stack.enter_context(listening(path)) as other:
        other.listen(0)
        while True:
            visitor = stack.enter_context(socket.socket(socket.AF_UNIX))
            visitor.setblocking(False)
            if visitor.connect_ex(str(path)):
                break
        assert "is in use: another process listens on it" in refusal(path)


def test_nor_another_users(tmp_path: Path) -> None:
    """Even for root: its daemons have sockets of root."""
    need_root("ANOTHER USER'S SOCKET")
    path = tmp_path / "sock"
    listening(path).close()
    os.chown(path, 65534, -1)
    told = f"{path} is a socket of another user (65534) and is not replaced"
    assert refusal(path).startswith(told)


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.ENOMEM, errno.ELOOP, errno.ENOENT, errno.EMFILE]
)
def test_nor_a_socket_that_cannot_be_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "sock"
    listening(path).close()

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "connect", fail, raising=False)
    told = refusal(path)
    assert told.startswith(f"cannot listen on {path}: ")


@pytest.mark.parametrize("kind", REPLACED, ids=lambda kind: kind.__name__)
def test_nor_a_file_that_came_after_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """The stale socket was replaced between check and removal."""
    path, found = tmp_path / "sock", []
    listening(path).close()
    with ExitStack() as stack:

        def act() -> None:
            kind(path, stack)
            found.append(Found.below(tmp_path))

        after_call(monkeypatch, "connect", act)
        with pytest.raises(OperatorError, match="Address already in use"):
            listeners.listen(path, OPEN)
        assert Found.below(tmp_path) == found[0]


def test_a_link_that_comes_before_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener behind the link gets no connection."""
    path = tmp_path / "sock"
    listening(path).close()
    with ExitStack() as stack, stack.enter_context(listening(tmp_path / "other")) as other:
        other.setblocking(False)

        def act() -> None:
            path.unlink()
            path.symlink_to(tmp_path / "other")

        before_call(monkeypatch, "connect", act)
        with pytest.raises(OperatorError, match="Address already in use"):
            listeners.listen(path, OPEN)
        with pytest.raises(BlockingIOError):
            other.accept()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EROFS, errno.EBUSY])
def test_a_stale_socket_that_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "sock"
    listening(path).close()

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "unlink", fail)
    assert refusal(path) == f"cannot listen on {path}: {os.strerror(number)}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no/sock", "No such file or directory"),
        ("file/sock", "Not a directory"),
        ("x" * 108, "AF_UNIX path too long"),
        ("x" * 300, "File name too long"),
        ("loop/sock", "Too many levels of symbolic links"),
    ],
)
def test_a_path_where_no_file_can_be(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    told = refusal(tmp_path / name)
    assert told == f"cannot listen on {tmp_path / name}: {text}"


def test_another_name_of_the_folder_is_the_same_place(tmp_path: Path) -> None:
    """/var/run is a link to /run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with listen(tmp_path / "link/sock") as file:
        assert (tmp_path / "run/sock").is_socket()
        assert "is in use" in refusal(tmp_path / "run/sock")
        file.remove()
    assert not (tmp_path / "run/sock").exists()


def test_a_reused_inode_number_is_not_the_same_file(tmp_path: Path) -> None:
    """Some file systems reuse the inode number of a file that was just removed."""
    path = tmp_path / "sock"
    with ExitStack() as stack, listen(path) as file:
        before = file.identity
        for _ in range(50):
            tampering.another_listens(path, stack)
            info = path.lstat()
            assert (info.st_dev, info.st_ino) != before
        file.remove()
        assert path.is_socket()
