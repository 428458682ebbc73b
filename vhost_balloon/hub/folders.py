"""Finds the control sockets of this host's VMs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vhost_balloon.name_text import name_text

SUFFIX: Final = ".control"
MAX_VMS: Final = 4096
MAX_PROBLEMS: Final = 20
"""Most problems reported by one look(): whoever can create files in a folder can create many."""
REMEDY: Final = "give its file another name (--control-socket=PATH)"


@dataclass(frozen=True, slots=True)
class Found:
    """A socket file. identity: differs from that of an earlier file of the same path."""

    path: str
    identity: tuple[int, int, int]


@dataclass(slots=True)
class Listing:
    """The sockets found, by the VMs' labels, and the problems to report to the operator."""

    sockets: dict[str, Found] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: int = 0

    def trouble(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)


def look(folders: Sequence[Path], most: int = MAX_VMS) -> Listing:
    """Find up to most `*.control` sockets. Call it in a thread, because a file system may hang.

    A VM is named by its file. Of two files with the same name, the first wins. Symbolic
    links are not followed: they could lead to any socket.
    """
    listing = Listing()
    for folder in folders:
        for label, path in _names(folder, listing):
            _add(listing, label, path, most)
    if listing.left_out:
        listing.trouble(f"{listing.left_out} VMs are left out: the limit is {most}")
    return listing


def _names(folder: Path, listing: Listing) -> Iterator[tuple[str, str]]:
    """Labels and paths, sorted by name."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        listing.trouble(f"no VMs in {folder}: {error.strerror}")
        return
    for name in names:
        if name.endswith(SUFFIX) and not name.startswith("."):
            yield name_text(name.removesuffix(SUFFIX)), os.path.join(folder, name)


def _add(listing: Listing, label: str, path: str, most: int) -> None:
    try:
        info = os.stat(path, follow_symlinks=False)
    except OSError:
        return  # gone in the meantime
    if not stat.S_ISSOCK(info.st_mode):
        return
    if label in listing.sockets:
        first = listing.sockets[label].path
        listing.trouble(f"{path} is left out: {first} has the same name; {REMEDY}")
    elif len(listing.sockets) >= most:
        listing.left_out += 1
    else:
        # With the time, because a new file may get the inode number of a deleted one.
        listing.sockets[label] = Found(path, (info.st_dev, info.st_ino, info.st_mtime_ns))
