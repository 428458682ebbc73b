"""qemu-args: prints the options that attach a QEMU to a VM's socket.

Standard output has nothing else; what an operator has to know goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import shlex
import stat
from typing import Any, Final

from vhost_balloon.ctl import folder, model
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.output import Output, complain
from vhost_balloon.name_text import shown, spellings, system_name

SIZE_MISSING: Final = "SIZE"
"""Placeholder for the guest's memory if it is not known."""

_DEVICE: Final = "vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,config_size=16"


def run(options: argparse.Namespace, output: Output) -> None:
    """Print JSON, lines to read and copy on a terminal, or one line for a script."""
    socket_path, vm = _vm(options)
    memory = options.memory or _memory(vm)
    pairs = qemu_options(socket_path, str(memory) if memory else SIZE_MISSING)
    if options.json:
        output.json([word for pair in pairs for word in pair])
    else:
        quoted = [f"{name} {_quoted(value)}" for name, value in pairs]
        output.lines([(" \\\n" if output.terminal else " ").join(quoted)])
    if vm is not None and (hint := model.hint(vm)) is not None:
        complain(f"{shown(vm.id)}: {hint}")


def _vm(options: argparse.Namespace) -> tuple[str, model.Vm | None]:
    """Return a VM's socket path, and the VM, None if its daemon does not run. Raises CtlError.

    A socket in the folder takes precedence: under systemd it exists before the daemon does, and a
    compromised daemon could name another VM's.
    """
    if options.control_socket is None:
        known = folder.control_sockets(options.folder)
        for name in spellings(options.vm):
            path = _socket_path(options.folder, name)
            if name not in known and _is_socket(path):
                return path, None
            if name in known:
                break
    with folder.open_vm(options) as client:
        vm = model.query_vm(client)
    path = _socket_path(options.folder, vm.id)
    if options.control_socket is None and _is_socket(path):
        return path, vm
    if vm.socket_path is None:
        raise CtlError(f"{shown(vm.id)} has no socket path: its front end is connected by --fd")
    try:
        return system_name(vm.socket_path), vm
    except ValueError:
        raise model.unexpected("socket-path") from None


def _socket_path(place: str, name: str) -> str:
    return os.path.join(place, f"{system_name(name)}.sock") if "/" not in name else ""


def _memory(vm: model.Vm | None) -> int:
    """Return the guest's memory: the setting, else the present size; 0 if neither is known."""
    if vm is None:
        return 0
    settings: dict[str, Any] = model.field(vm.raw, "settings", dict, {})
    return model.field(settings, "memory", int, 0) or vm.memory


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _quoted(value: str) -> str:
    """Quote a word for a shell; control characters as $'\\ooo', so that it can be read and run."""
    if value.isprintable():
        return shlex.quote(value)
    data = os.fsencode(value)
    plain = {ord(c): c for c in map(chr, range(0x20, 0x7F)) if c not in "'\\"}
    return "$'" + "".join(plain.get(byte) or f"\\{byte:03o}" for byte in data) + "'"


def qemu_options(socket_path: str, memory: str) -> list[tuple[str, str]]:
    """Return options and their values. QEMU merges -machine with another -machine."""
    size = f"{memory}b" if memory.isdecimal() else memory
    path = socket_path.replace(",", ",,")
    return [
        ("-m", size),
        ("-object", f"memory-backend-memfd,id=mem,size={size},share=on"),
        ("-machine", "memory-backend=mem"),
        ("-chardev", f"socket,id=balloon,path={path}"),
        ("-device", _DEVICE),
    ]
