"""The file of a Unix socket: permissions, identity, removal.

A path proves nothing: another socket, a file or a symbolic link may be there by now. So a file is
identified by device and inode, and changed through a descriptor of the file itself, which also
keeps its inode number from being reused.
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
"""A bit without a meaning on a socket, cleared once the socket is ready: it tells a new file from
any other that may have been put in its place."""


class SocketFile:
    """The file at a path, of any type. fd: opened with O_PATH; it is taken over."""

    def __init__(self, path: Path, fd: OwnedFd) -> None:
        self.path: Final = path
        self._fd: Final = fd

    @classmethod
    def at(cls, path: Path) -> Self:
        """Open the file at path; does not follow a symbolic link. Raises OSError."""
        return cls(path, OwnedFd(os.open(path, os.O_PATH | os.O_NOFOLLOW)))

    @classmethod
    def bind(cls, sock: socket.socket, path: Path) -> Self:
        """Bind a new socket; only its owner may connect. Raises OSError."""
        os.fchmod(sock.fileno(), 0o600 | _BIRTHMARK)  # the mode of the file, minus the umask
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
        """Status of the file itself, wherever it is."""
        return os.fstat(self._fd.fileno())

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode, unique while this file or its socket is open."""
        info = self.info()
        return info.st_dev, info.st_ino

    def is_socket(self) -> bool:
        return stat.S_ISSOCK(self.info().st_mode)

    def is_in_place(self) -> bool:
        """Whether its path still leads to it. Raises OSError if that cannot be determined."""
        return os.path.samestat(os.lstat(self.path), self.info())

    def check_in_place(self) -> None:
        """Raises OSError if its path does not lead to it."""
        if not self.is_in_place():
            raise FileExistsError(errno.EEXIST, "another file was put in its place")

    def set_access(self, mode: int, group: int | None) -> None:
        """Set who may connect: permission bits, and a group's number or None to leave it.

        Nobody gets access in between who has it neither before nor after. Raises OSError, also if
        its path leads to something else.
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
        """The group that a new file gets in this folder. Raises OSError."""
        folder = self.path.parent.stat()
        return folder.st_gid if folder.st_mode & stat.S_ISGID else os.getegid()

    def remove(self) -> None:
        """Remove it, if its path still leads to it. A failure is logged."""
        try:
            if self.is_in_place():
                self.path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass  # removed already
        except OSError as error:
            logger.warning("cannot remove %s: %s", self.path, error.strerror)

    def make_way(self) -> None:
        """Remove it if it is a stale socket of our user.

        Raises OperatorError for anything else, and OSError for a failure.
        """
        info = self.info()
        if not self.is_socket():
            link = ": the name is in use for a symbolic link" if stat.S_ISLNK(info.st_mode) else ""
            raise OperatorError(f"{self.path} exists and is not a socket{link}")
        self._check_stale()
        if info.st_uid != os.geteuid():
            raise OperatorError(
                f"{self.path} is a socket of another user ({info.st_uid}) and is not replaced: "
                "remove it if it is not needed"
            )
        if self.is_in_place():
            self.path.unlink()

    def _check_stale(self) -> None:
        """Raises OperatorError if a process listens, and OSError if that cannot be determined."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(self._itself()))
            except ConnectionRefusedError:
                return
            except BlockingIOError:
                pass  # its backlog is full, so a process listens
            except OSError as error:
                if error.errno != errno.EPROTOTYPE:
                    raise
                raise OperatorError(
                    f"{self.path} is in use: another process has a socket of another type there"
                ) from None
        raise OperatorError(f"{self.path} is in use: another process listens on it")

    def _itself(self) -> Path:
        """A path that always leads to the file itself. Raises OSError."""
        path = Path(f"/proc/self/fd/{self._fd.fileno()}")
        if not path.is_symlink():
            raise OSError(errno.ENOSYS, "/proc is required and not mounted")
        return path
