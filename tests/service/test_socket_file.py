"""Creating and replacing a socket's file and setting its permissions touch only our sockets."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.command import listening
from tests.support.end_to_end import open_fds
from tests.support.hostile import tampering
from tests.support.hostile.tampering import REPLACED, Found, Kind, removed
from tests.support.huge_pages import need_root
from vhost_balloon.errors import OperatorError
from vhost_balloon.service import listeners
from vhost_balloon.service.listeners import SocketOptions
from vhost_balloon.service.socket_file import SocketFile

OPEN = SocketOptions(0o666)


@contextmanager
def listen(path: Path, access: SocketOptions = OPEN) -> Iterator[SocketFile]:
    """The daemon's socket; no descriptor stays open."""
    sock, file = listeners.listen(path, access)
    with sock:
        yield file
        file.close()


def refusal(path: Path, access: SocketOptions = OPEN) -> str:
    """The reason why it cannot listen; nothing in the folder changes, no descriptor stays open."""
    before, opened = Found.below(path.parent), open_fds()
    with pytest.raises(OperatorError) as failure:
        listeners.listen(path, access)
    assert Found.below(path.parent) == before
    assert open_fds() == opened
    assert "\n" not in str(failure.value)
    return str(failure.value)


def before_call(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """Have something happen once, just before a method of the socket is called."""
    real = getattr(socket.socket, name)

    def acting(sock: socket.socket, *arguments: object) -> object:
        monkeypatch.undo()
        act()
        return real(sock, *arguments)

    monkeypatch.setattr(socket.socket, name, acting, raising=False)


def after_call(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """... just after."""
    real = getattr(socket.socket, name)

    def acting(sock: socket.socket, *arguments: object) -> object:
        monkeypatch.undo()
        try:
            return real(sock, *arguments)
        finally:
            act()

    monkeypatch.setattr(socket.socket, name, acting, raising=False)


# Permissions, and when they apply


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


# Obstacles at the path


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
