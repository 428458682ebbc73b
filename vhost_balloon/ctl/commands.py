"""What each command does."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from vhost_balloon.ctl import listing, model, orders, qemu_args, vms
from vhost_balloon.ctl.client import Client
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.output import Output

Command: TypeAlias = Callable[[argparse.Namespace, Client, Output], None]


def run(options: argparse.Namespace, output: Output) -> None:
    """Carry out a parsed command line. Raises CtlError or ReaderGone."""
    if options.command in _WITHOUT_DAEMON:
        _WITHOUT_DAEMON[options.command](options, output)
        return
    with Client(options.control_socket) as client:
        _COMMANDS[options.command](options, client, output)


def _list(options: argparse.Namespace, client: Client, output: Output) -> None:
    found = model.query_vms(client)
    if options.json:
        output.json([vm.id for vm in found] if options.names else [vm.raw for vm in found])
    elif options.names:
        output.lines(listing.names(found))
    else:
        output.lines(listing.overview(found, output.room()))


def _status(options: argparse.Namespace, client: Client, output: Output) -> None:
    vm = model.query_vm(client, options.vm)
    if options.json:
        output.json(vm.raw)
    else:
        output.lines(listing.details(vm, output.room()))


def _stats(options: argparse.Namespace, client: Client, output: Output) -> None:
    model.query_vm(client, options.vm)  # for its error: the names of those that there are
    if options.last:
        path = f"/machine/peripheral/{options.vm}"
        found = client.execute("qom-get", {"path": path, "property": "guest-stats"})
    else:
        limit = {"id": options.vm, "timeout": max(1, round(options.timeout * 1000))}
        found = client.execute("balloon-stats", limit, patience=options.timeout)
    if not isinstance(found, dict):
        raise CtlError("the daemon's answer is not understood: another version?")
    if options.json:
        output.json(found)
        return
    known = {
        name: value
        for name, value in model.sizes(found, "stats").items()
        if value != model.STAT_UNKNOWN
    }
    if not known:
        raise CtlError(f"{options.vm} has not given statistics yet")
    output.lines(listing.statistics(known, model.field(found, "last-update", int, 0)))


def _watch(options: argparse.Namespace, client: Client, output: Output) -> None:
    from vhost_balloon.ctl import watch  # the other commands do not need what it needs

    watch.run(options, client, output)


def _monitoring(options: argparse.Namespace, output: Output) -> None:
    from importlib import resources

    name = {"rules": "alerts.yml", "dashboard": "dashboard.json"}[options.what]
    try:
        text = (resources.files("vhost_balloon") / "monitoring" / name).read_text("utf-8")
    except OSError as error:
        raise CtlError(f"{name} is not installed: {error.strerror}") from None
    output.write(text)


def _install_units(options: argparse.Namespace, output: Output) -> None:
    from vhost_balloon.ctl import units

    units.run(options, output)


def _completion(options: argparse.Namespace, output: Output) -> None:
    from vhost_balloon.ctl import completion

    output.write(completion.script(options.shell))


_COMMANDS: Final[Mapping[str, Command]] = {
    "list": _list,
    "status": _status,
    "stats": _stats,
    "watch": _watch,
    "set": orders.set_target,
    "pause": orders.pause,
    "resume": orders.resume,
    "add": vms.add,
    "remove": vms.remove,
    "reload": vms.reload,
    "upgrade": vms.upgrade,
    "qemu-args": qemu_args.run,
}
_WITHOUT_DAEMON: Final[Mapping[str, Callable[[argparse.Namespace, Output], Any]]] = {
    "monitoring": _monitoring,
    "install-units": _install_units,
    "completion": _completion,
}
