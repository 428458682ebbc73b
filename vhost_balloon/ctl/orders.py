"""set, pause, resume and disconnect: changes a VM's state, and waits for the effect."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

from vhost_balloon.ctl import model
from vhost_balloon.ctl.client import Client
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.model import Vm
from vhost_balloon.ctl.output import Output, complain
from vhost_balloon.ctl.progress import Progress
from vhost_balloon.name_text import shown
from vhost_balloon.printable import printable
from vhost_balloon.sizes import format_size

POLL_SECONDS: Final = 0.2
"""BALLOON_CHANGE comes at most once a second, too rarely for a progress bar. query-vms is cheap."""

PAGE_SIZE: Final = 4096
"""The daemon rounds a target up to whole pages."""

RELEASE_SECONDS: Final = 10.0
"""Time beyond the usual limit for a service manager that is slow to drop the connection."""

DISCONNECTED: Final = (
    "its QEMU keeps running without the balloon, but aborts at the guest's next reset or at "
    "`stop` and `cont`: shut the guest down and start QEMU again"
)
"""What a running QEMU makes of the end of its connection."""

_GIVEN_UP: Final = {"stuck": "is stuck", "out-of-memory": "is out of memory"}


def set_target(options: argparse.Namespace, client: Client, output: Output) -> None:
    """Set a target and, with --wait, wait until it is reached. Raises CtlError if it is not."""
    before = model.query_vm(client)
    hold = {} if options.hold is None else {"hold": options.hold}
    client.execute("balloon", {"value": options.size, **hold})
    vm = model.query_vm(client)
    if not options.wait:
        if options.json:
            output.json(_summary(vm))
        else:
            output.lines([_accepted(vm, options.size)])
        return
    started = time.monotonic()
    with Progress(output, shown=not options.json) as progress:
        vm = _wait(options, client, progress, before)
    seconds = time.monotonic() - started
    if options.json:
        output.json(_summary(vm) | {"seconds": round(seconds, 3)})
    else:
        output.lines([f"{shown(vm.id)}: {format_size(vm.actual)} after {seconds:.1f} s"])


def _summary(vm: Vm) -> dict[str, Any]:
    return {
        "id": vm.id,
        "target": vm.target,
        "actual": vm.actual,
        "state": vm.state,
        "pending": vm.pending,
    }


def _accepted(vm: Vm, asked: int) -> str:
    text = f"{shown(vm.id)}: target {format_size(vm.target)}"
    if vm.memory and asked > vm.memory:
        text += ", all of its memory"
    if vm.pending or vm.state == "no-driver":
        text += " (pending: the guest's driver is not ready)"
    return text


def _wait(options: argparse.Namespace, client: Client, progress: Progress, before: Vm) -> Vm:
    """Return the VM once it has reached the target. Raises CtlError if it cannot, or is late."""
    started = time.monotonic()
    while True:
        vm = model.query_vm(client)
        _check(vm, before, options.size)
        if vm.state == "done":
            return vm
        passed = time.monotonic() - started
        if options.timeout is not None and passed >= options.timeout:
            raise CtlError(
                f"{shown(vm.id)} did not reach its target within {options.timeout:g} s: "
                f"{vm.state}, {_figures(vm)}"
            )
        progress.show(vm, before.actual, passed)
        left = POLL_SECONDS if options.timeout is None else options.timeout - passed
        time.sleep(max(0, min(POLL_SECONDS, left)))


def _check(vm: Vm, before: Vm, asked: int) -> None:
    """Raises CtlError if the target cannot be reached."""
    pid = model.field(vm.raw, "front-end-pid", int, None)
    if not vm.attached or pid != model.field(before.raw, "front-end-pid", int, None):
        raise CtlError(f"{shown(vm.id)} went away")
    expected = min(asked, vm.memory) if vm.memory else asked
    if vm.target is None or not expected <= vm.target < expected + PAGE_SIZE:
        if vm.memory != before.memory:
            raise CtlError(
                f"{shown(vm.id)} was given other memory or another target: "
                f"{format_size(vm.target)} of {format_size(vm.memory)}"
            )
        raise CtlError(f"{shown(vm.id)} was given another target: {format_size(vm.target)}")
    if vm.state in _GIVEN_UP:
        raise CtlError(f"{shown(vm.id)} {_GIVEN_UP[vm.state]}: {_figures(vm)}")


def _figures(vm: Vm) -> str:
    return f"actual {format_size(vm.actual)}, target {format_size(vm.target)}"


def pause(options: argparse.Namespace, client: Client, output: Output) -> None:
    """Stop discarding reported pages; they are only acknowledged."""
    _order(options, client, output, "balloon-pause")


def resume(options: argparse.Namespace, client: Client, output: Output) -> None:
    """Discard reported pages again, unless another reason forbids it."""
    _order(options, client, output, "balloon-resume")


def disconnect(options: argparse.Namespace, client: Client, output: Output) -> None:
    """End the connection of a VM's front end, and warn of what that does to its QEMU."""
    client.execute("vm-disconnect", patience=RELEASE_SECONDS)
    name = str(client.name)
    complain(f"{shown(name)}: {DISCONNECTED}")
    if options.json:
        output.json({"id": name, "disconnected": True})
    else:
        output.lines([f"{shown(name)}: the front end is disconnected"])


def _order(options: argparse.Namespace, client: Client, output: Output, command: str) -> None:
    client.execute(command)
    vm = model.query_vm(client)
    if options.json:
        paused = {"reporting-paused": bool(vm.paused), "pause-reasons": list(vm.paused)}
        output.json({"id": vm.id, **paused})
        return
    state = f"paused ({', '.join(vm.paused)})" if vm.paused else "not paused"
    output.lines([f"{shown(vm.id)}: discarding of reported pages is {printable(state)}"])
