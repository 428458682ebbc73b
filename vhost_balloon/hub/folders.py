"""Finds the control sockets of this host's VMs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vhost_balloon.metrics.families import vm_label

SUFFIX: Final = ".control"
MAX_VMS: Final = 4096
MAX_PROBLEMS: Final = 20
"""Most problems that are told of one look: whoever can make files in a folder can make many."""


@dataclass(frozen=True, slots=True)
class Found:
    """A socket file. identity tells it from the one that was there before."""

    path: str
    identity: tuple[int, int, int]


@dataclass(slots=True)
class Listing:
    """What is there: sockets by the VMs' labels, and what the operator has to know."""

    sockets: dict[str, Found] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: int = 0

    def trouble(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)


def look(folders: Sequence[Path], most: int = MAX_VMS) -> Listing:
    """Find `*.control` sockets, and return no more than most. To run in a thread: a file system may
    hang.

    A VM is named by its file. Of two with one name, or one label, the first is taken. Symbolic
    links are not followed: they could lead to anybody's socket.
    """
    listing = Listing()
    for folder in folders:
        for label, path in _names(folder, listing):
            _add(listing, label, path, most)
    if listing.left_out:
        listing.trouble(f"{listing.left_out} VMs are left out: {most} are the most")
    return listing


def _names(folder: Path, listing: Listing) -> Iterator[tuple[str, str]]:
    """Labels and paths, in the order of names."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        listing.trouble(f"no VMs in {folder}: {error.strerror}")
        return
    for name in names:
        if name.endswith(SUFFIX) and not name.startswith("."):
            yield vm_label(name.removesuffix(SUFFIX)), os.path.join(folder, name)


def _add(listing: Listing, label: str, path: str, most: int) -> None:
    try:
        info = os.stat(path, follow_symlinks=False)
    except OSError:
        return  # gone meanwhile
    if not stat.S_ISSOCK(info.st_mode):
        return
    if label in listing.sockets:
        listing.trouble(f"{path} is left out: {listing.sockets[label].path} has that name")
    elif len(listing.sockets) >= most:
        listing.left_out += 1
    else:
        # Another file may get the number of one that is gone.
        listing.sockets[label] = Found(path, (info.st_dev, info.st_ino, info.st_mtime_ns))
