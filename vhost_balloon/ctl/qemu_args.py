"""qemu-args: the options that attach a QEMU to a VM's socket."""

from __future__ import annotations

import argparse
import os
import shlex
import stat
from typing import Final

from vhost_balloon.ctl import folder, model
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.output import Output

SIZE_MISSING: Final = "SIZE"
"""Stands for the guest's memory where nobody has said how large it is."""

_DEVICE: Final = "vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,config_size=16"


def run(options: argparse.Namespace, output: Output) -> None:
    """Print them: JSON, lines to read and copy on a terminal, else one line for a script."""
    socket_path, memory = _vm(options)
    memory = options.memory or memory
    pairs = qemu_options(socket_path, str(memory) if memory else SIZE_MISSING)
    if options.json:
        output.json([word for pair in pairs for word in pair])
        return
    quoted = [f"{name} {_quoted(value)}" for name, value in pairs]
    output.lines([(" \\\n" if output.terminal else " ").join(quoted)])


def _vm(options: argparse.Namespace) -> tuple[str, int]:
    """A VM's socket and memory (bytes, 0 if not known). Raises CtlError.

    The socket is the folder's, if it is there: under systemd it is there before the daemon is, and
    a daemon that its guest has taken over could name another VM's.
    """
    path = os.path.join(options.folder, f"{options.vm}.sock")
    is_there = options.control_socket is None and "/" not in options.vm and _is_socket(path)
    if is_there and options.vm not in folder.places(options.folder):
        return path, 0
    with folder.open_vm(options) as client:
        vm = model.query_vm(client)
    if is_there:
        return path, vm.memory
    if vm.socket_path is None:
        raise CtlError(f"{vm.id} has no socket path: its front end is connected by --fd")
    return vm.socket_path, vm.memory


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _quoted(value: str) -> str:
    """A word for a shell. One with control characters is quoted as bash and other shells do, so
    that it can be both read and run."""
    if value.isprintable():
        return shlex.quote(value)
    try:
        data = os.fsencode(value)
    except UnicodeEncodeError:
        raise CtlError("the daemon's answer is not understood (socket-path)") from None
    plain = {ord(c): c for c in map(chr, range(0x20, 0x7F)) if c not in "'\\"}
    return "$'" + "".join(plain.get(byte) or f"\\{byte:03o}" for byte in data) + "'"


def qemu_options(socket_path: str, memory: str) -> list[tuple[str, str]]:
    """Options and their values. -machine adds to what another -machine says."""
    size = f"{memory}b" if memory.isdecimal() else memory
    path = socket_path.replace(",", ",,")
    return [
        ("-m", size),
        ("-object", f"memory-backend-memfd,id=mem,size={size},share=on"),
        ("-machine", "memory-backend=mem"),
        ("-chardev", f"socket,id=balloon,path={path}"),
        ("-device", _DEVICE),
    ]
