"""add, remove, reload and upgrade: which VMs the daemon serves, and which program that is."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from vhost_balloon.ctl import model
from vhost_balloon.ctl.client import Client
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.options import FEATURES
from vhost_balloon.ctl.output import Output
from vhost_balloon.printable import printable

UPGRADE_SECONDS: Final = 30.0
"""What the new program may take to show that it starts, and then to start."""

_CHANGES: Final = {
    "added": "added",
    "removed": "removed",
    "leaving": "stays until its front end has gone",
    "changed": "changed",
    "kept": "as it was",
}
"""The members of config-reload's answer, and what they say of a VM."""


def add(options: argparse.Namespace, client: Client, output: Output) -> None:
    """Have one more VM served. Raises CtlError."""
    path = os.path.abspath(options.socket)  # the daemon runs in another folder
    client.execute("vm-add", {"id": options.vm, "socket-path": path, **_settings(options)})
    vm = model.query_vm(client, options.vm)
    if options.json:
        output.json(vm.raw)
    else:
        output.lines([printable(f"{vm.id}: listening on {vm.socket_path}")])


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was given; all else is the daemon's to choose."""
    given: dict[str, Any] = {
        name: False for name in FEATURES if getattr(options, f"no_{name.replace('-', '_')}")
    }
    for name in ("discard-hugetlb", "discard-other-filesystems"):
        if getattr(options, name.replace("-", "_")):
            given[name] = True
    plain = ("target", "report-rate", "stats-interval", "discard", "socket-mode", "socket-group")
    for name in plain:
        value = getattr(options, name.replace("-", "_"))
        if value is not None:
            given[name] = value
    return given


def remove(options: argparse.Namespace, client: Client, output: Output) -> None:
    """Have a VM served no longer. Raises CtlError while it has a front end."""
    model.query_vm(client, options.vm)  # for its error: the names of those that there are
    client.execute("vm-del", {"id": options.vm})
    if options.json:
        output.json({"id": options.vm})
    else:
        output.lines([printable(f"{options.vm}: removed")])


def reload(options: argparse.Namespace, client: Client, output: Output) -> None:
    """Have the configuration file read again. Raises CtlError if there is a mistake in it."""
    answer = client.execute("config-reload")
    if not isinstance(answer, dict):
        raise CtlError("the daemon's answer is not understood: another version?")
    changes = {change: model.words(answer, change) for change in _CHANGES}
    if options.json:
        output.json(answer)
        return
    lines = [f"{name}: {_CHANGES[change]}" for change in changes for name in changes[change]]
    output.lines(map(printable, lines or ["no VM is configured in the file"]))


def upgrade(options: argparse.Namespace, client: Client, output: Output) -> None:
    """Have the daemon re-execute itself as it is installed now. Raises CtlError if that does not
    start; the daemon goes on as it is then."""
    client.execute("upgrade", patience=UPGRADE_SECONDS)
    client.wait_end(UPGRADE_SECONDS)
    with Client(options.control_socket, UPGRADE_SECONDS) as successor:
        version = successor.execute("query-version")
        vms = model.query_vms(successor)
    if options.json:
        output.json(version)
        return
    numbers = version.get("qemu") if isinstance(version, dict) else None
    if not isinstance(numbers, dict):
        raise CtlError("the daemon's answer is not understood: another version?")
    text = ".".join(str(numbers.get(part)) for part in ("major", "minor", "micro"))
    attached = sum(vm.attached for vm in vms)
    output.lines([printable(f"version {text} serves {len(vms)} VMs, {attached} of them attached")])
