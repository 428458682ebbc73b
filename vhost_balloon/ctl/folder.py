"""Finds VMs: each has a control socket NAME.control in a folder, or --control-socket names one.

A VM in a folder is named by its file: only root can write there, while a daemon that its guest has
taken over may call itself anything.
"""

from __future__ import annotations

import argparse
import os
import resource
import stat
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple

from vhost_balloon.ctl import model
from vhost_balloon.ctl.client import ANSWER_SECONDS, Client, Round
from vhost_balloon.ctl.errors import CtlError, ServerError
from vhost_balloon.ctl.link import Link
from vhost_balloon.ctl.model import Vm

SUFFIX: Final = ".control"
FOLDER_SECONDS: Final = 1.0
"""Time limit of each VM's answer where all are asked at once."""

_OTHER_DESCRIPTORS: Final = 64


class Place(NamedTuple):
    """A control socket. name: None where the daemon says it; device and inode tell a new socket
    at the same path from the one before."""

    path: str
    name: str | None = None
    device: int = 0
    inode: int = 0


def places(folder: str) -> dict[str, Place]:
    """The folder's VMs, by name and in the order of names. Raises CtlError.

    Symbolic links are not followed: they could lead to anybody's socket.
    """
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name.removesuffix(SUFFIX)
                if name == entry.name or not name or name.startswith("."):
                    continue
                with suppress(OSError):  # it has gone meanwhile
                    file = entry.stat(follow_symlinks=False)
                    if stat.S_ISSOCK(file.st_mode):
                        found[name] = Place(entry.path, name, file.st_dev, file.st_ino)
    except FileNotFoundError:
        raise CtlError(f"there is no folder {folder}: is vhost-balloon running?") from None
    except OSError as error:
        raise CtlError(f"cannot read the folder {folder}: {error.strerror}") from None
    return dict(sorted(found.items()))


def open_vm(options: argparse.Namespace) -> Client:
    """A connection to the daemon of the VM that the command line names. Raises CtlError."""
    paths = find(options, [options.vm])
    return Client(paths[options.vm], options.vm)


def find(options: argparse.Namespace, names: list[str] | None) -> dict[str, str]:
    """The control sockets' paths of the VMs of these names, None: of all. Raises CtlError."""
    if options.control_socket is None:
        known = {name: place.path for name, place in places(options.folder).items()}
    else:
        with Client(options.control_socket) as client:
            known = {model.query_vm(client).id: options.control_socket}
    if names is None:
        return known
    for name in names:
        if name not in known:
            there_are = f" (there are: {', '.join(known)})" if known else ""
            raise CtlError(f"there is no VM {name!r}{there_are}")
    return {name: known[name] for name in names}


class Lookout:
    """Looks at all VMs, again and again: ask(), and once that round is over vms().

    It keeps a connection to each from one look to the next; a context manager, which closes them.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._folder: str = options.folder
        self._control_socket: str | None = options.control_socket
        self._links: dict[Place, Link] = {}

    def __enter__(self) -> Lookout:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for link in self._links.values():
            link.close()

    def look(self) -> list[Vm]:
        """All VMs as they are now. Raises CtlError."""
        self.ask().run()
        return self.vms()

    def ask(self) -> Round:
        """Ask all VMs that there are. Raises CtlError."""
        before, self._links = self._links, {}
        for place in self._places():
            link = before.pop(place, None)
            if link is not None:
                link.go_on()  # it may have ended since
            if link is None or link.problem is not None:
                link = Link(place.path)
            link.ask("query-vms")
            self._links[place] = link
        for gone in before.values():
            gone.close()
        _raise_descriptor_limit(len(self._links))
        seconds = FOLDER_SECONDS if self._control_socket is None else ANSWER_SECONDS
        return Round(self._links.values(), seconds)

    def vms(self) -> list[Vm]:
        """What they answered; one that did not is among them. Raises CtlError where only one
        daemon was to be asked."""
        return [self._read(place, link) for place, link in self._links.items()]

    def _places(self) -> list[Place]:
        if self._control_socket is not None:
            return [Place(self._control_socket)]
        return [*places(self._folder).values()]

    def _read(self, place: Place, link: Link) -> Vm:
        try:
            return model.read_vm(link.take()[-1], place.name)
        except CtlError as error:
            if place.name is not None:
                return model.without_answer(place.name, str(error))
            if isinstance(error, ServerError):
                raise
            raise CtlError(f"{place.path}: {error}") from None


def _raise_descriptor_limit(connections: int) -> None:
    """Have room for that many. Where the limit is too low the VMs beyond it say so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < connections + _OTHER_DESCRIPTORS:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
