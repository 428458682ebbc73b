"""policy, policy-hold, policy-release, policy-mode, and reload --hub."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from vhost_balloon.ctl import watch
from vhost_balloon.ctl.client import ANSWER_SECONDS
from vhost_balloon.ctl.errors import CtlError, ServerError
from vhost_balloon.ctl.hub import view
from vhost_balloon.ctl.hub.asking import HubPoller, execute
from vhost_balloon.ctl.hub.model import (
    OFF,
    Policy,
    answered,
    find,
    read_policy,
    texts,
    texts_by_name,
)
from vhost_balloon.ctl.hub.screen import PolicyScreen
from vhost_balloon.ctl.output import Output, complain
from vhost_balloon.ctl.text import fold
from vhost_balloon.ctl.upkeep import told_changes
from vhost_balloon.name_text import shown, spellings
from vhost_balloon.printable import printable

NO_VM: Final = "DeviceNotFound"
"""QMP's class of the error that no VM has this name."""

BEFORE_SECONDS: Final = 1.0
"""Time limit for reading the mode that `policy-mode` changes, which only its line tells."""

Command: TypeAlias = Callable[[argparse.Namespace, Output], None]


def run(options: argparse.Namespace, output: Output) -> None:
    """Carry out a parsed command line. Raises CtlError or ReaderGone."""
    _COMMANDS[options.command](options, output)


def _policy(options: argparse.Namespace, output: Output) -> None:
    if options.watch:
        _watch(options, output)
        return
    policy = _query(options)
    if options.explain is not None:
        _explain(options, policy, output)
    elif options.json:
        output.json(policy.raw)
    else:
        output.lines(view.overview(policy, output.room()))


def _query(options: argparse.Namespace, seconds: float = ANSWER_SECONDS) -> Policy:
    return read_policy(execute(options, "query-policy", seconds=seconds))


def _explain(options: argparse.Namespace, policy: Policy, output: Output) -> None:
    vm = find(policy, spellings(options.explain))
    if vm is None:
        if policy.mode == OFF:
            raise CtlError(policy.explanation or view.host_line(policy))
        raise CtlError(_unknown(options.explain, policy))
    if options.json:
        output.json(vm.raw)
    else:
        output.lines(view.explained(policy, vm, output.room()))


def _unknown(name: str, policy: Policy) -> str:
    """Why the policy does not know a VM."""
    text = f"the policy knows no VM '{name}'"
    if policy.host is None:
        return f"{text}: {policy.problems[0] if policy.problems else policy.explanation}"
    others = ", ".join(shown(vm.id) for vm in policy.vms if vm.id) or "none"
    return f"{text} (it knows: {others})"


def _watch(options: argparse.Namespace, output: Output) -> None:
    with HubPoller(options.hub_socket) as poller:
        if output.live and not options.json:
            screen = PolicyScreen(colour=output.colour)
            watch.live(options, output, screen, poller.ask, lambda: screen.add(poller.policy()))
            return
        for clock in watch.updates(options):
            poller.ask().run()
            policy = poller.policy()
            if options.json:
                output.json(policy.raw)
            else:
                output.lines([*clock, *view.overview(policy, output.room())])


def _to_vm(options: argparse.Namespace, command: str, arguments: Mapping[str, Any]) -> str:
    """Send an order for the VM of the command line; return its name. Raises CtlError.

    A spelling is given up only if no VM has it: after another refusal, the next one might be
    another VM's.
    """
    *others, last = dict.fromkeys(spellings(options.vm))
    for name in others:
        try:
            execute(options, command, {"id": name, **arguments})
        except ServerError as error:
            if error.error_class != NO_VM:
                raise
        else:
            return name
    execute(options, command, {"id": last, **arguments})
    return last


def _hold(options: argparse.Namespace, output: Output) -> None:
    arguments = {} if options.seconds is None else {"seconds": options.seconds}
    name = _to_vm(options, "policy-hold", arguments)
    if options.json:
        held_for = {} if options.seconds is None else {"held-for": options.seconds}
        output.json({"id": name, "held": True, **held_for})
        return
    until = "until policy-release" if options.seconds is None else f"for {options.seconds} s"
    output.lines([f"{shown(name)}: the policy leaves it alone {until}"])


def _release(options: argparse.Namespace, output: Output) -> None:
    if options.all:
        _release_all(options, output)
        return
    name = _to_vm(options, "policy-release", {})
    if options.json:
        output.json({"id": name, "held": False})
    else:
        output.lines([f"{shown(name)}: the policy may move it again"])


def _release_all(options: argparse.Namespace, output: Output) -> None:
    """Raises CtlError if a hold may last."""
    answer = answered(execute(options, "policy-release"), "policy-release")
    left, failed = texts(answer, "left"), texts_by_name(answer, "failed")
    if options.json:
        output.json({"left": [*left], **({"failed": failed} if failed else {})})
    else:
        room = output.room()
        for line in _released(left, failed):
            output.lines(fold(line, room))
    if failed:
        raise CtlError(f"holds that may last: {', '.join(map(shown, failed))}")


def _released(left: Sequence[str], failed: Mapping[str, str]) -> Iterator[str]:
    """left: VMs below their ceilings; failed: why the hold of others may last."""
    for name, why in failed.items():
        yield f"{shown(name)}: {printable(why)}: its hold may last"
    yield "all other holds are ended" if failed else "all holds are ended"
    if left:
        yield f"still below their ceilings: {', '.join(map(shown, left))}"
        yield "they get memory back while the host has more than its reserve"
    elif not failed:
        yield "all VMs have their ceilings as targets"


def _mode(options: argparse.Namespace, output: Output) -> None:
    """Switch also if the mode before cannot be read: the policy may have to stop now."""
    before: Policy | None = None
    with suppress(CtlError):
        before = _query(options, BEFORE_SECONDS)
    execute(options, "policy-mode", {"mode": options.mode})
    told = {"mode": options.mode}
    change = options.mode
    if before is not None:
        told |= {"before": before.mode, "configured-mode": before.configured}
        change = f"{before.mode} -> {options.mode}"
    if options.json:
        output.json(told)
    else:
        output.lines([printable(f"policy: {change}")])
    if before is not None and options.mode != before.configured:
        complain(
            f"this lasts until the hub restarts: its configuration says {before.configured} "
            "([policy], mode)"
        )


def _reload(options: argparse.Namespace, output: Output) -> None:
    answer = answered(execute(options, "config-reload"), "config-reload")
    changed = texts(answer, "changed")
    if options.json:
        output.json({"changed": [*changed]})
    else:
        output.lines([printable(f"hub: {told_changes(changed)}")])


_COMMANDS: Final[Mapping[str, Command]] = {
    "policy": _policy,
    "policy-hold": _hold,
    "policy-release": _release,
    "policy-mode": _mode,
    "reload": _reload,
}
