"""Tells the front-end socket from the control socket: by options, or by the names and paths of
sockets that were handed over."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vhost_balloon.errors import OperatorError
from vhost_balloon.service.environment import UNNAMED
from vhost_balloon.service.handed_over import CONTROL, RESERVED_NAMES

FRONT_END: Final = "front-end"
"""FileDescriptorName= in our units; it does not name the VM."""

_UNIT: Final = ".socket"
"""Ends the name of a socket whose unit has no FileDescriptorName=: it is the unit's."""

_ONE_EACH: Final = (
    "this daemon serves one VM: start one vhost-balloon for each "
    "(under systemd vhost-balloon@NAME.socket)"
)

Handed = Mapping[str, Path | None]
"""Sockets that were handed over: paths by name. A name that begins with "/" is a path
(take_sockets())."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """The paths of the VM's sockets.

    front_end: absolute; None if there is none, and with --fd. handed_over: whether it was. name:
    its FileDescriptorName=, if that names the VM.
    """

    front_end: Path | None
    handed_over: bool
    name: str | None
    control: Path | None


def choose_sockets(options: argparse.Namespace, handed: Handed) -> Sockets:
    """Raises OperatorError."""
    handed = _with_control(options, handed)
    front_end, name = _front_end(options, handed)
    control = _control(options, handed)
    if control is not None and front_end is not None and _is_same(control, front_end):
        raise OperatorError(
            f"front end and control socket have the same path {control}: "
            "give --control-socket another path"
        )
    stated = name if name is not None and _names_vm(name) else None
    return Sockets(front_end, name is not None, stated, control)


def _with_control(options: argparse.Namespace, handed: Handed) -> Handed:
    """Name the control socket so, if none has that name and options tell which it is."""
    sockets = _unreserved(handed)
    control = None if CONTROL in handed else _control_name(options, sockets)
    if control is None:
        return handed
    found = {CONTROL if name == control else name: path for name, path in handed.items()}
    for name in sockets.keys() - {control}:
        if name.startswith("/"):  # both sockets have the name under which the other was found
            found[control] = found.pop(name)
            break
    return found


def _control_name(options: argparse.Namespace, sockets: Handed) -> str | None:
    """The name of the socket with the path of --control-socket, or of the only one beside that of
    --socket-path; None if it cannot be told."""
    given = options.socket_path[0] if len(options.socket_path) == 1 else None
    is_one_of_two = len(sockets) > 1
    if options.control_socket is not None and (is_one_of_two or given or options.fd):
        found = [name for name, path in sockets.items() if _is_path(options.control_socket, path)]
    elif options.control_socket is None and is_one_of_two and given:
        found = [name for name, path in sockets.items() if not _is_path(given, path)]
    else:
        found = []
    return found[0] if len(found) == 1 else None


def _front_end(options: argparse.Namespace, handed: Handed) -> tuple[Path | None, str | None]:
    """Where the front end connects, and the socket's name if it was handed over."""
    given = [path.absolute() for path in options.socket_path]
    sockets = _unreserved(handed)
    if len(given) > 1:
        raise OperatorError(f"more than one --socket-path: {_ONE_EACH}")
    if len(options.fd) > 1:
        raise OperatorError(f"more than one --fd: {_ONE_EACH}")
    if len(sockets) > 1:
        listed = ", ".join(str(path or name) for name, path in sockets.items())
        control = "if one is the control socket, say so with --control-socket=PATH"
        if options.control_socket is not None and CONTROL not in handed:
            control = f"--control-socket={options.control_socket} is none of them"
        raise OperatorError(
            f"several front-end sockets were handed over, {listed}: {_ONE_EACH}; {control}"
        )
    if options.fd and (given or sockets):
        raise OperatorError(f"both --fd and another front-end socket: {_ONE_EACH}")
    for name, path in sockets.items():
        if path is None:
            raise OperatorError(f"{name!r} was handed over without a path")
        if given and not _is_same(given[0], path):
            raise OperatorError(
                f"--socket-path={given[0]}, but {path} was handed over: leave out the option"
            )
        return path.absolute(), name
    return (given[0] if given else None), None


def _control(options: argparse.Namespace, handed: Handed) -> Path | None:
    given: Path | None = options.control_socket
    if CONTROL not in handed:
        return given
    path = handed[CONTROL]
    if given is not None and not _is_path(given, path):
        raise OperatorError(
            f"--control-socket={given}, but {path} was handed over: leave out the option"
        )
    return path


def _names_vm(name: str) -> bool:
    """Whether the operator chose this name for a socket that was handed over."""
    is_default = name.endswith(_UNIT) or name.startswith("/")
    return not is_default and name not in ("", UNNAMED, FRONT_END)


def _unreserved(handed: Handed) -> dict[str, Path | None]:
    return {name: path for name, path in handed.items() if name not in RESERVED_NAMES}


def _is_path(given: Path | None, path: Path | None) -> bool:
    return given is not None and path is not None and _is_same(given, path)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same place; the files need not exist."""
    return _resolved(one) == _resolved(other)


def _resolved(path: Path) -> tuple[str, str]:
    return os.path.realpath(path.parent), path.name
