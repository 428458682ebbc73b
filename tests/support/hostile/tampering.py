"""Ways to tamper with a socket's file while its daemon runs."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Kind = Callable[[Path, ExitStack], None]


def _bound(path: Path, stack: ExitStack, kind: socket.SocketKind) -> socket.socket:
    path.unlink()
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    sock.bind(str(path))
    return sock


def another_listens(path: Path, stack: ExitStack) -> None:
    _bound(path, stack, socket.SOCK_STREAM).listen()


def another_listened(path: Path, stack: ExitStack) -> None:
    _bound(path, stack, socket.SOCK_STREAM).close()


def another_type(path: Path, stack: ExitStack) -> None:
    _bound(path, stack, socket.SOCK_DGRAM)


def renamed_over(path: Path, stack: ExitStack) -> None:
    """Never was nothing at the path."""
    other = path.with_name("other")
    other.touch()
    _bound(other, stack, socket.SOCK_STREAM).listen()
    other.rename(path)


def a_file(path: Path, stack: ExitStack) -> None:
    path.unlink()
    path.write_text("precious")


def a_folder(path: Path, stack: ExitStack) -> None:
    path.unlink()
    path.mkdir()


def a_fifo(path: Path, stack: ExitStack) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_it(path: Path, stack: ExitStack) -> None:
    """The socket itself, by another name."""
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)


def a_link_to_a_file(path: Path, stack: ExitStack) -> None:
    path.unlink()
    victim = path.with_name("victim")
    victim.write_text("precious")
    victim.chmod(0o600)
    path.symlink_to(victim)


def a_link_to_another(path: Path, stack: ExitStack) -> None:
    victim = path.with_name("victim")
    victim.touch()
    _bound(victim, stack, socket.SOCK_STREAM).listen()
    victim.chmod(0o600)
    path.unlink()
    path.symlink_to(victim)


def a_dangling_link(path: Path, stack: ExitStack) -> None:
    path.unlink()
    path.symlink_to("nowhere")


REPLACED: Final[tuple[Kind, ...]] = (
    another_listens,
    another_listened,
    another_type,
    renamed_over,
    a_file,
    a_folder,
    a_fifo,
    a_link_to_it,
    a_link_to_a_file,
    a_link_to_another,
    a_dangling_link,
)
"""Something else is in the socket's place then."""


def removed(path: Path, stack: ExitStack) -> None:
    path.unlink()


def folder_removed(path: Path, stack: ExitStack) -> None:
    shutil.rmtree(path.parent)


def folder_replaced(path: Path, stack: ExitStack) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("precious")


GONE: Final[tuple[Kind, ...]] = (removed, folder_removed, folder_replaced)
EVERY: Final = (*REPLACED, *GONE)


@dataclass(frozen=True)
class Found:
    """A tree of files: paths with type, permissions, group, identity and where links lead."""

    entries: dict[str, tuple[int, ...]]

    @classmethod
    def below(cls, folder: Path) -> Found:
        """All that lies below a folder, no link followed."""
        entries: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.rglob("*")):
            info = path.lstat()
            entries[str(path)] = (info.st_mode, info.st_gid, info.st_dev, info.st_ino)
        return cls(entries)

    def without(self, *paths: Path) -> Found:
        gone = {str(path) for path in paths}
        return Found({path: entry for path, entry in self.entries.items() if path not in gone})


def laid_out(folder: Path, kinds: tuple[Kind, ...] = EVERY) -> dict[str, Path]:
    """A folder for each kind, and one for a socket that nobody touches; paths of sockets."""
    paths = {}
    for name in ("untouched", *(kind.__name__ for kind in kinds)):
        (folder / name).mkdir()
        paths[name] = folder / name / f"{name}.sock"
    return paths


def tamper(paths: dict[str, Path], stack: ExitStack, kinds: tuple[Kind, ...] = EVERY) -> None:
    for kind in kinds:
        kind(paths[kind.__name__], stack)
