"""The file of a Unix socket: who may connect, whether it is still the one that was made, its end.

A path says nothing: another socket, a file or a symbolic link may lie there by now. So a file is
known by device and inode. What is done to it is done through a descriptor of the file itself, which
also keeps its inode number from being used again.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final, Self

from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger

_BIRTHMARK: Final = stat.S_ISVTX
"""Means nothing on a socket, and no finished one has it: it tells a file that was just made from
any other that somebody may have put in its place."""


class SocketFile:
    """What lies at a path, whatever that is. fd: opened with O_PATH; it is taken over."""

    def __init__(self, path: Path, fd: OwnedFd) -> None:
        self.path: Final = path
        self._fd: Final = fd

    @classmethod
    def at(cls, path: Path) -> Self:
        """The file at path itself, should that be a symbolic link. Raises OSError."""
        return cls(path, OwnedFd(os.open(path, os.O_PATH | os.O_NOFOLLOW)))

    @classmethod
    def bind(cls, sock: socket.socket, path: Path) -> Self:
        """Bind a new socket; only its owner may connect, once it listens. Raises OSError."""
        os.fchmod(sock.fileno(), 0o600 | _BIRTHMARK)  # what the file gets, less the umask
        sock.bind(os.fspath(path))
        file = cls.at(path)
        info = file.info()
        is_new = file.is_socket() and bool(info.st_mode & _BIRTHMARK)
        if not is_new or info.st_uid != os.geteuid():
            file.close()
            raise FileExistsError(errno.EEXIST, "another file was put in its place")
        return file

    def close(self) -> None:
        self._fd.close()

    def info(self) -> os.stat_result:
        """Of the file itself, wherever it is."""
        return os.fstat(self._fd.fileno())

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: no other file has both as long as this one, or its socket, is open."""
        info = self.info()
        return info.st_dev, info.st_ino

    def is_socket(self) -> bool:
        return stat.S_ISSOCK(self.info().st_mode)

    def is_in_place(self) -> bool:
        """Whether its path leads to it. Raises OSError if that leads nowhere, or cannot be told."""
        return os.path.samestat(os.lstat(self.path), self.info())

    def check_in_place(self) -> None:
        """Raises OSError if its path does not lead to it."""
        if not self.is_in_place():
            raise FileExistsError(errno.EEXIST, "another file was put in its place")

    def set_access(self, mode: int, group: int | None) -> None:
        """Set who may connect: permission bits, and a group's number or None to leave it.

        Meanwhile nobody may who may neither before nor after. Raises OSError, also if its path
        leads to something else.
        """
        self.check_in_place()
        info, itself = self.info(), self._itself()
        before = stat.S_IMODE(info.st_mode)
        if group not in (None, info.st_gid):
            os.chmod(itself, before & mode)
            os.chown(itself, -1, group)
        elif before == mode:
            return
        os.chmod(itself, mode)

    def default_group(self) -> int:
        """The group that a file gets here if none is asked for. Raises OSError."""
        folder = self.path.parent.stat()
        return folder.st_gid if folder.st_mode & stat.S_ISGID else os.getegid()

    def remove(self) -> None:
        """Remove it, if its path still leads to it. What hinders is logged."""
        try:
            if self.is_in_place():
                self.path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass  # somebody did so
        except OSError as error:
            logger.warning("%s stays: %s", self.path, error.strerror)

    def make_way(self) -> None:
        """Remove it if it is a socket of our user on which nobody listens.

        Raises OperatorError for anything else, and OSError where it cannot be told or done.
        """
        info = self.info()
        if not self.is_socket():
            link = ": the name is in use for a symbolic link" if stat.S_ISLNK(info.st_mode) else ""
            raise OperatorError(f"{self.path} exists and is not a socket{link}")
        self._check_stale()
        if info.st_uid != os.geteuid():
            raise OperatorError(
                f"{self.path} is a socket of another user ({info.st_uid}), and is not replaced: "
                "remove it if nobody needs it"
            )
        if self.is_in_place():
            self.path.unlink()

    def _check_stale(self) -> None:
        """Raises OperatorError if somebody listens, and OSError if that cannot be told."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(self._itself()))
            except ConnectionRefusedError:
                return
            except BlockingIOError:
                pass  # its backlog is full: somebody listens
            except OSError as error:
                if error.errno != errno.EPROTOTYPE:
                    raise
                raise OperatorError(
                    f"{self.path} is in use: another process has a socket of another type there"
                ) from None
        raise OperatorError(f"{self.path} is in use: another process listens on it")

    def _itself(self) -> Path:
        """A path that leads to the file, and that nobody can change. Raises OSError."""
        path = Path(f"/proc/self/fd/{self._fd.fileno()}")
        if not path.is_symlink():
            raise OSError(errno.ENOSYS, "that takes /proc, which is not mounted")
        return path
