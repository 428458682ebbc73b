"""Lays out the policy: the host, the table of VMs, and one VM explained. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from vhost_balloon.ctl.hub.model import OFF, Policy, PolicyVm
from vhost_balloon.ctl.listing import names
from vhost_balloon.ctl.text import Column, fold, shorten, table
from vhost_balloon.name_text import shown
from vhost_balloon.printable import printable
from vhost_balloon.sizes import UNKNOWN, format_size

OLD: Final = 10.0
"""Seconds from which the age of the host's figures is shown; they are renewed every 2 s."""

MAX_TITLES: Final = 3
"""Problems in the title of a screen."""

REASON_COLUMNS: Final = 16
"""On a terminal, a reason with its detail is cut to a quarter of a line, or to the longest reason
without one: a VM's daemon chooses some details, and the other columns are to stay."""


def host_line(policy: Policy) -> str:
    """Return the host's state in one line."""
    return printable(f"policy {policy.mode}{_configured(policy)}: {_state(policy)}")


def policy_titles(policy: Policy) -> list[tuple[str, str]]:
    """Return the host's state and problems as title lines of a screen (watch_view.py)."""
    is_short = policy.host is not None and policy.host.short
    problems = [("alarm", f" note: {printable(text)}") for text in policy.problems[:MAX_TITLES]]
    return [("alarm-title" if is_short else "title", f" {host_line(policy)}"), *problems]


def _configured(policy: Policy) -> str:
    return "" if policy.configured == policy.mode else f" (configured: {policy.configured})"


def _state(policy: Policy) -> str:
    host = policy.host
    if policy.mode == OFF and host is None:
        return "no VM is moved"
    if not policy.readable:
        return "the host's memory cannot be read"
    if host is None:
        return "no figures yet"
    parts = ["short"] if host.short else ["plenty"] if host.plenty else []
    parts.append(f"{format_size(host.available)} of {format_size(host.total)} available")
    parts.append(f"reserve {format_size(host.reserve)}")
    if host.k is not None:
        parts.append(f"k {host.k:.2f}")
    if host.some is not None:
        parts.append(f"pressure {host.some:.0%}")
    if host.short:
        parts.append(f"VMs can spare {format_size(host.spare)}")
    if host.age is not None and host.age >= OLD:
        parts.append(f"{host.age:.0f} s ago")
    return ", ".join(parts)


def overview(policy: Policy, room: int | None) -> list[str]:
    """Return the host's state, problems, and the table of VMs."""
    told = host_line(policy)
    if policy.mode == OFF:
        told = printable(policy.explanation) or told
    lines = [*fold(told, room), *_problems(policy)]
    if policy.vms:  # also while the policy is off, and memory goes back by order
        return [*lines, *vms_table(policy.vms, room)]
    return lines if policy.mode == OFF else [*lines, "no VM"]


def _problems(policy: Policy) -> list[str]:
    """They are not cut: they say what to do. Some are no problem, such as memory that goes back to
    all VMs by order."""
    return [f"note: {printable(problem)}" for problem in policy.problems]


def vms_table(vms: Sequence[PolicyVm], room: int | None) -> list[str]:
    """room: the terminal's columns; None: no terminal."""
    columns = (
        Column("VM"),
        Column("REASON"),
        Column("TARGET", right=True),
        Column("ACTUAL", right=True, rank=1),
        Column("DEMAND", right=True, rank=3),
        Column("PEAK", right=True, rank=7),
        Column("KEEP", right=True, rank=6),
        Column("SPARE", right=True, rank=2),
        Column("RESIDENT", right=True, rank=4),
        Column("AGE", right=True, rank=5),
    )
    shown_names = names([vm.id or UNKNOWN for vm in vms], cut=room is not None)
    rows = [_row(vm, name, reason(vm, room)) for vm, name in zip(vms, shown_names, strict=True)]
    return table(columns, rows, room)


def reason(vm: PolicyVm, room: int | None) -> str:
    """Return the reason as a cell. room: as above."""
    text = printable(vm.reason)
    return text if room is None else shorten(text, max(REASON_COLUMNS, room // 4))


def reasons(policy: Policy, room: int | None) -> dict[str, str]:
    """Return the reasons of all VMs as cells. room: as above."""
    return {vm.id: reason(vm, room) for vm in policy.vms}


def _row(vm: PolicyVm, name: str, why: str) -> tuple[str, ...]:
    target = format_size(vm.target)
    return (
        name,
        why,
        target if vm.order is None else f"{target} -> {format_size(vm.order)}",
        *map(format_size, (vm.actual, vm.demand, vm.peak, vm.keep, vm.spare, vm.resident)),
        UNKNOWN if vm.age is None else f"{vm.age:.0f} s",
    )


def explained(policy: Policy, vm: PolicyVm, room: int | None) -> list[str]:
    """Return the host's and the VM's sentences, and the VM's figures."""
    pairs = [(title, value) for title, value in _figures(vm) if value != UNKNOWN]
    columns = max(len(title) for title, _ in pairs)
    lines = [f"  {title:<{columns}}  {printable(value)}" for title, value in pairs]
    return [
        *fold(printable(policy.explanation), room),
        *_problems(policy),
        *fold(printable(vm.explanation), room),
        "",
        *fold(f"{shown(vm.id)}: {printable(vm.reason)}", room),
        *(lines if room is None else [shorten(line, room) for line in lines]),
    ]


_SIZES: Final[Mapping[str, str]] = {
    "size": "guest memory",
    "ceiling": "ceiling",
    "floor": "floor",
    "target": "target",
    "order": "order",
    "actual": "actual",
    "resident": "resident on the host",
    "demand": "demand",
    "peak": "demand lately",
    "slack": "slack",
    "keep": "may keep",
    "spare": "can spare",
}


def _figures(vm: PolicyVm) -> list[tuple[str, str]]:
    distress, held_for = vm.known.get("distress"), vm.known.get("held-for")
    decisions = vm.known.get("decisions")
    return [
        *((title, format_size(vm.known.get(name))) for name, title in _SIZES.items()),
        ("weight", str(vm.known.get("weight", UNKNOWN))),
        ("short of memory", UNKNOWN if distress is None else "yes" if distress else "no"),
        ("last statistics", "none" if vm.age is None else f"{vm.age:.0f} s ago"),
        ("hold ends in", UNKNOWN if held_for is None else f"{held_for:.0f} s"),
        ("orders so far", UNKNOWN if decisions is None else _orders(decisions)),
        ("reversals", str(vm.known.get("reversals", UNKNOWN))),
    ]


def _orders(decisions: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in decisions.items() if n) or "none"
