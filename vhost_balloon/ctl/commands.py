"""Runs a parsed command. The larger ones are in separate modules."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from vhost_balloon.ctl import folder, listing, model, orders, qemu_args, upkeep
from vhost_balloon.ctl.client import Client
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.options import COMPLETION_SCRIPTS
from vhost_balloon.ctl.output import Output
from vhost_balloon.name_text import shown

Command: TypeAlias = Callable[[argparse.Namespace, Output], None]
VmCommand: TypeAlias = Callable[[argparse.Namespace, Client, Output], None]


def run(options: argparse.Namespace, output: Output) -> None:
    """Carry out a parsed command line. Raises CtlError or ReaderGone."""
    if options.command in _COMMANDS:
        _COMMANDS[options.command](options, output)
        return
    with folder.open_vm(options) as client:
        _VM_COMMANDS[options.command](options, client, output)


def _list(options: argparse.Namespace, output: Output) -> None:
    if options.names and options.control_socket is None:
        names = [*folder.control_sockets(options.folder)]
    else:
        with folder.Poller(options) as poller:
            vms = poller.poll()
        names = [vm.id for vm in vms]
    if options.json:
        output.json(names if options.names else [vm.raw for vm in vms])
    elif options.names:
        output.lines(map(shown, names))
    else:
        output.lines(listing.overview(vms, output.room()) if vms else [listing.no_vm(options)])


def _status(options: argparse.Namespace, client: Client, output: Output) -> None:
    vm = model.query_vm(client)
    if options.json:
        output.json(vm.raw)
    else:
        output.lines(listing.details(vm, output.room()))


def _stats(options: argparse.Namespace, client: Client, output: Output) -> None:
    if options.last:
        found = _last_sample(client)
    else:
        limit = {"timeout": max(1, round(options.timeout * 1000))}
        found = client.execute("balloon-stats", limit, patience=options.timeout)
        if not isinstance(found, dict):
            raise model.unexpected("balloon-stats")
    values = model.sizes(found, "stats")
    last_update = model.field(found, "last-update", int, 0)
    if options.json:
        known = {name: n for name, n in values.items() if n != model.STAT_UNKNOWN}
        output.json({"stats": known, "last-update": last_update})
        return
    if not last_update:
        raise CtlError(f"{shown(str(client.name))} has not sent statistics yet")
    output.lines(listing.statistics(values, last_update))


def _last_sample(client: Client) -> dict[str, Any]:
    """Return the last sample in the form of balloon-stats. Raises CtlError."""
    raw = model.query_vm(client).raw
    age = model.seconds(raw, "stats-age")
    last_update = 0 if age is None else max(0, int(time.time() - age))
    return {"stats": model.sizes(raw, "stats"), "last-update": last_update}


# The modules imported in these functions are slow to load.


def _watch(options: argparse.Namespace, output: Output) -> None:
    from vhost_balloon.ctl import watch

    watch.run(options, output)


def _hub(options: argparse.Namespace, output: Output) -> None:
    from vhost_balloon.ctl.hub import commands

    commands.run(options, output)


def _reload(options: argparse.Namespace, output: Output) -> None:
    if options.hub:
        _hub(options, output)
    else:
        upkeep.reload(options, output)


def _monitoring(options: argparse.Namespace, output: Output) -> None:
    from vhost_balloon.ctl import shipped

    name = {"rules": "alerts.yml", "dashboard": "dashboard.json"}[options.what]
    output.write(shipped.read("monitoring", name))


def _completion(options: argparse.Namespace, output: Output) -> None:
    from vhost_balloon.ctl import shipped

    output.write(shipped.read("completion", COMPLETION_SCRIPTS[options.shell]))


def _install_units(options: argparse.Namespace, output: Output) -> None:
    from vhost_balloon.ctl import units

    units.run(options, output)


_VM_COMMANDS: Final[Mapping[str, VmCommand]] = {
    "status": _status,
    "stats": _stats,
    "set": orders.set_target,
    "pause": orders.pause,
    "resume": orders.resume,
    "disconnect": orders.disconnect,
}
_COMMANDS: Final[Mapping[str, Command]] = {
    "list": _list,
    "watch": _watch,
    "qemu-args": qemu_args.run,
    "policy": _hub,
    "policy-hold": _hub,
    "policy-release": _hub,
    "policy-mode": _hub,
    "reload": _reload,
    "upgrade": upkeep.upgrade,
    "monitoring": _monitoring,
    "install-units": _install_units,
    "completion": _completion,
}
