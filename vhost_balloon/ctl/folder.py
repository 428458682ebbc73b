"""Finds VMs by their control sockets: NAME.control in a folder, or the one of --control-socket.

The file gives a VM in the folder its name. Only root can write there, while a daemon that its guest
has compromised can report any name.
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
from vhost_balloon.name_text import name_text, shown, spellings

SUFFIX: Final = ".control"
FOLDER_SECONDS: Final = 1.0
"""Time limit of each VM's answer when all are asked at once."""

_OTHER_DESCRIPTORS: Final = 64


class ControlSocket(NamedTuple):
    """A control socket.

    name: None if only the daemon knows it; device and inode: tell a new socket at the same path
    from the old one.
    """

    path: str
    name: str | None = None
    device: int = 0
    inode: int = 0


def control_sockets(folder: str) -> dict[str, ControlSocket]:
    """Return the folder's control sockets by VM name (name_text.py), sorted. Raises CtlError.

    Symbolic links are not followed: they could lead to anyone's socket.
    """
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = name_text(entry.name.removesuffix(SUFFIX))
                if not entry.name.endswith(SUFFIX) or not name or name.startswith("."):
                    continue
                with suppress(OSError):  # it has disappeared
                    file = entry.stat(follow_symlinks=False)
                    if stat.S_ISSOCK(file.st_mode):
                        found[name] = ControlSocket(entry.path, name, file.st_dev, file.st_ino)
    except FileNotFoundError:
        raise CtlError(f"there is no folder {folder}: is vhost-balloon running?") from None
    except OSError as error:
        raise CtlError(f"cannot read the folder {folder}: {error.strerror}") from None
    return dict(sorted(found.items()))


def open_vm(options: argparse.Namespace) -> Client:
    """Connect to the daemon of the VM that the command line names. Raises CtlError."""
    ((name, path),) = find(options, [options.vm]).items()
    return Client(path, name)


def find(options: argparse.Namespace, names: list[str] | None) -> dict[str, str]:
    """Return the control sockets' paths by VM name. names: None for all VMs. Raises CtlError."""
    if options.control_socket is None:
        known = {name: socket.path for name, socket in control_sockets(options.folder).items()}
    else:
        with Client(options.control_socket) as client:
            known = {model.query_vm(client).id: options.control_socket}
    if names is None:
        return known
    chosen = {}
    for word in names:
        name = next((name for name in spellings(word) if name in known), None)
        if name is None:
            others = f" (known VMs: {', '.join(map(shown, known))})" if known else ""
            raise CtlError(f"there is no VM '{word}'{others}")
        chosen[name] = known[name]
    return chosen


class Poller:
    """Queries all VMs repeatedly: ask(), then vms() once that round is over.

    Keeps the connections open between rounds. A context manager that closes them.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._folder: str = options.folder
        self._control_socket: str | None = options.control_socket
        self._links: dict[ControlSocket, Link] = {}

    def __enter__(self) -> Poller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for link in self._links.values():
            link.close()

    def poll(self) -> list[Vm]:
        """Query all VMs and return them. Raises CtlError."""
        self.ask().run()
        return self.vms()

    def ask(self) -> Round:
        """Start a query of all VMs that exist now. Raises CtlError."""
        before, self._links = self._links, {}
        for socket in self._sockets():
            link = before.pop(socket, None)
            if link is not None and link.problem is None:
                link.advance()  # it may have been closed
            if link is None or link.problem is not None:
                link = Link(socket.path)
            link.ask("query-vms")
            self._links[socket] = link
        for gone in before.values():
            gone.close()
        _raise_descriptor_limit(len(self._links))
        seconds = FOLDER_SECONDS if self._control_socket is None else ANSWER_SECONDS
        return Round(self._links.values(), seconds)

    def vms(self) -> list[Vm]:
        """Return the VMs of the last round, those without an answer included.

        Raises CtlError if --control-socket names the VM and it did not answer.
        """
        return [self._read(socket, link) for socket, link in self._links.items()]

    def _sockets(self) -> list[ControlSocket]:
        if self._control_socket is not None:
            return [ControlSocket(self._control_socket)]
        return [*control_sockets(self._folder).values()]

    def _read(self, socket: ControlSocket, link: Link) -> Vm:
        try:
            return model.read_vm(link.take()[-1], socket.name)
        except CtlError as error:
            if socket.name is not None:
                return model.without_answer(socket.name, str(error))
            if isinstance(error, ServerError):
                raise
            raise CtlError(f"{socket.path}: {error}") from None


def _raise_descriptor_limit(connections: int) -> None:
    """Make room for that many. If the hard limit is too low, the VMs beyond it show an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < connections + _OTHER_DESCRIPTORS:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
