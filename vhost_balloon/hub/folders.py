"""Finds the control sockets of this host's VMs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
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
    """The sockets found, by the VMs' labels, and the problems to report to the operator.

    failure: why not all of them can be found; "" if they can.
    """

    sockets: dict[str, Found] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: int = 0
    failure: str = ""

    def trouble(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def fail(self, path: str | Path, error: OSError) -> None:
        text = f"{path} cannot be read: {error.strerror}"
        self.failure = self.failure or text
        self.trouble(text)


def look(
    folders: Sequence[Path], most: int = MAX_VMS, known: Mapping[str, Found] | None = None
) -> Listing:
    """Find up to most `*.control` sockets. Call it in a thread, because a file system may hang.

    A VM is named by its file. Of two files with the same name, the first wins. Symbolic
    links are not followed: they could lead to any socket.

    known: those of the last listing. They stay where a folder is there and cannot be read, for want
    of descriptors for example: that is no sign that its VMs have gone.
    """
    listing, known = Listing(), known or {}
    for folder in folders:
        for label, path in _names(folder, listing, known):
            _add(listing, label, path, most, known.get(label))
    if listing.left_out:
        listing.trouble(f"{listing.left_out} VMs are left out: the limit is {most}")
    return listing


def _names(folder: Path, listing: Listing, known: Mapping[str, Found]) -> Iterable[tuple[str, str]]:
    """Labels and paths, sorted by name."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError as error:
        listing.trouble(f"no VMs in {folder}: {error.strerror}")
        return []
    except OSError as error:
        listing.fail(folder, error)
        paths = [(label, found.path) for label, found in known.items()]
        return [(label, path) for label, path in paths if os.path.dirname(path) == str(folder)]
    return [
        (name_text(name.removesuffix(SUFFIX)), os.path.join(folder, name))
        for name in names
        if name.endswith(SUFFIX) and not name.startswith(".")
    ]


def _add(listing: Listing, label: str, path: str, most: int, known: Found | None) -> None:
    """known: the socket of that label in the last listing."""
    found = _identify(listing, path, known)
    if found is None:
        return
    if label in listing.sockets:
        first = listing.sockets[label].path
        listing.trouble(f"{path} is left out: {first} has the same name; {REMEDY}")
    elif len(listing.sockets) >= most:
        listing.left_out += 1
    else:
        listing.sockets[label] = found


def _identify(listing: Listing, path: str, known: Found | None) -> Found | None:
    """The socket at path, None if there is none; the known one if that cannot be told."""
    try:
        info = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None  # gone in the meantime
    except OSError as error:
        listing.fail(path, error)
        return known if known is not None and known.path == path else None
    if not stat.S_ISSOCK(info.st_mode):
        return None
    # With the time, because a new file may get the inode number of a deleted one.
    return Found(path, (info.st_dev, info.st_ino, info.st_mtime_ns))
