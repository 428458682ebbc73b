"""Lays out the output of list, status and stats."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vhost_balloon.ctl import model
from vhost_balloon.ctl.model import STAT_UNKNOWN, Vm
from vhost_balloon.ctl.options import PROGRAM
from vhost_balloon.ctl.text import Column, fold, shorten, table, width
from vhost_balloon.name_text import shown
from vhost_balloon.printable import printable
from vhost_balloon.sizes import UNKNOWN, format_size

NAME_COLUMNS: Final = 24
"""On a terminal, longer names are cut, as far as they still differ."""

PINS_UNKNOWN: Final = "pins-unknown"
_NOTE: Final = f"{PINS_UNKNOWN}: `{PROGRAM} status VM` says why, and what to do"

_BYTES: Final = {
    "stat-swap-in",
    "stat-swap-out",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
}
"""Statistics that are sizes; all others count events."""


def no_vm(options: argparse.Namespace) -> str:
    """Return the line that replaces an empty table."""
    return printable(f"no VM in {options.folder}")


def overview(
    vms: Sequence[Vm], room: int | None, reasons: Mapping[str, str] | None = None
) -> list[str]:
    """Return the table of `list`. room: the terminal's columns; None: no terminal.

    reasons: the policy's, by VM, printable; None for no such column.
    """
    columns: tuple[Column, ...] = (
        Column("VM"),
        Column("STATE"),
        Column("MEMORY", right=True, rank=3),
        Column("TARGET", right=True, rank=2),
        Column("ACTUAL", right=True, rank=1),
        Column("RESIDENT", right=True),
        Column("FREED", right=True, rank=4),
        Column("REPORTING", rank=5),
    )
    rows = [*map(_overview_row, vms, names([vm.id for vm in vms], cut=room is not None))]
    if reasons is not None:
        columns, rows = with_reasons(columns, rows, vms, reasons)
    lines = table(columns, rows, room)
    if any(PINS_UNKNOWN in vm.paused for vm in vms):
        lines.append(_NOTE if room is None else shorten(_NOTE, room))
    return lines


def _overview_row(vm: Vm, name: str) -> tuple[str, ...]:
    if vm.error is not None:
        return name, printable(vm.error)
    return (
        name,
        printable(vm.state),
        memory(vm),
        format_size(vm.target),
        format_size(vm.actual),
        format_size(vm.resident),
        format_size(vm.freed),
        reporting(vm),
    )


def with_reasons(
    columns: tuple[Column, ...],
    rows: Sequence[tuple[str, ...]],
    vms: Sequence[Vm],
    reasons: Mapping[str, str],
) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
    """Add a column with the policy's reasons, which are printable. Rows of VMs without an answer
    stay as they are."""
    extended = [
        row if vm.error is not None else (*row, reasons.get(vm.id, UNKNOWN))
        for vm, row in zip(vms, rows, strict=True)
    ]
    return (*columns, Column("POLICY", rank=2)), extended


def names(ids: Sequence[str], *, cut: bool) -> list[str]:
    """Return VMs' names, printable. cut: to NAME_COLUMNS, or to twice as many and so on if some
    would be the same then."""
    found = [*map(shown, ids)]
    columns = NAME_COLUMNS
    while cut and any(width(name) > columns for name in found):
        shortened = [shorten(name, columns) for name in found]
        if len(set(shortened)) == len(set(found)):
            return shortened
        columns *= 2
    return found


def memory(vm: Vm) -> str:
    return format_size(vm.memory or None)


def reporting(vm: Vm) -> str:
    """Return whether the guest's free pages are discarded, or why not."""
    if vm.paused:
        return "paused: " + printable(", ".join(vm.paused))
    return "on" if "page-reporting" in model.words(vm.raw, "features") else UNKNOWN


def details(vm: Vm, room: int | None) -> list[str]:
    """Return the lines of `status`: one figure a line, then the queues."""
    pairs = [*_identity(vm), *_sizes(vm), *_counters(vm.raw)]
    pairs = [(title, value) for title, value in pairs if value != UNKNOWN]
    columns = max(len(title) for title, _ in pairs)
    lines = [f"{shown(vm.id)}: {printable(vm.state)}"]
    lines += [f"  {title:<{columns}}  {printable(value)}" for title, value in pairs]
    if room is not None:
        lines = [shorten(line, room) for line in lines]
    if queues := model.objects(vm.raw, "queues"):
        lines += ["", *_queues(queues, room)]
    return lines + _hint(vm, room)


def _hint(vm: Vm, room: int | None) -> list[str]:
    """Return a paragraph, in lines that fit a terminal."""
    text = model.hint(vm)
    if text is None:
        return []
    return ["", *fold(printable(text), room)]


def _identity(vm: Vm) -> list[tuple[str, str]]:
    pid = model.field(vm.raw, "front-end-pid", int, None)
    process = UNKNOWN if pid is None else f"process {pid}"
    ready = model.field(vm.raw, "driver-ready", bool, False)
    return [
        ("socket", vm.socket_path or UNKNOWN),
        ("front end", process if vm.attached else "not attached"),
        ("guest's driver", "ready" if ready else "not ready"),
        ("features", " ".join(model.words(vm.raw, "features")) or UNKNOWN),
        ("free page reporting", reporting(vm)),
    ]


def _sizes(vm: Vm) -> list[tuple[str, str]]:
    regions = model.objects(vm.raw, "regions")
    backing = {
        f"{model.field(region, 'backing', str, UNKNOWN)}, pages of "
        f"{format_size(model.field(region, 'page-size', int, None))}"
        for region in regions
    }
    held = f" ({'; '.join(sorted(backing))})" if regions else ""
    waits = " (pending: the guest's driver is not ready)" if vm.pending else ""
    return [
        ("guest memory", memory(vm) + held),
        ("target", format_size(vm.target) + waits),
        ("host's policy", _hold(vm.raw)),
        ("actual", format_size(vm.actual)),
        ("balloon", format_size(model.field(vm.raw, "balloon", int, None))),
        ("huge pages in it", _huge_pages(vm.raw)),
        ("resident on the host", format_size(vm.resident)),
    ]


def _hold(raw: Mapping[str, Any]) -> str:
    """Return whether an operator's order keeps the policy from changing the target."""
    if not model.field(raw, "held", bool, False):
        return UNKNOWN
    left = model.seconds(raw, "held-for")
    return "leaves it alone (manual order)" + ("" if left is None else f", {left:.0f} s left")


def _huge_pages(raw: Mapping[str, Any]) -> str:
    """Return the host's huge pages that are wholly or partly in the balloon."""
    pages = model.sizes(raw, "huge-pages") if raw.get("huge-pages") is not None else {}
    if not pages:
        return UNKNOWN
    whole, partial = pages.get("whole", 0), pages.get("partial", 0)
    waiting = format_size(pages.get("waiting-bytes", 0))
    freed = model.field(raw, "huge-pages-freed", int, 0)
    return f"{whole} whole ({freed} freed so far), {partial} in part ({waiting})"


def _counters(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    titles = ("reported", "inflated", "deflated", "freed")
    pairs = [
        (title, format_size(model.field(raw, f"{title}-bytes", int, None))) for title in titles
    ]
    refused = model.sizes(raw, "refused-bytes")
    reasons = ", ".join(f"{reason} {format_size(size)}" for reason, size in refused.items())
    pairs.append(("not discarded", reasons or format_size(0)))
    for title in ("ring-errors", "front-end-errors"):
        pairs.append((title.replace("-", " "), str(model.total(raw, title))))
    age = model.seconds(raw, "stats-age")
    return [*pairs, ("last statistics", UNKNOWN if age is None else f"{age:.0f} s ago")]


def _queues(queues: Sequence[Mapping[str, Any]], room: int | None) -> list[str]:
    columns = (
        Column("RING", right=True),
        Column("QUEUE"),
        Column("SIZE", right=True),
        Column("STATE"),
        Column("REQUESTS", right=True),
    )
    rows = [
        (
            str(model.field(queue, "index", int, 0)),
            printable(model.field(queue, "queue", str, UNKNOWN)),
            str(model.field(queue, "size", int, 0)),
            printable(_queue_state(queue)),
            str(model.field(queue, "requests", int, 0)),
        )
        for queue in queues
    ]
    return [f"  {line}" for line in table(columns, rows, None if room is None else room - 2)]


def _queue_state(queue: Mapping[str, Any]) -> str:
    broken = model.field(queue, "broken", str, None)
    if broken is not None:
        return f"stopped: {broken}"
    return "running" if model.field(queue, "enabled", bool, False) else "disabled"


def statistics(values: Mapping[str, int], last_update: int) -> list[str]:
    """Return the lines of `stats`. last_update: seconds since the epoch."""
    rows = [
        (printable(title.removeprefix("stat-").replace("-", " ")), _statistic(title, value))
        for title, value in values.items()
    ]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(last_update, 1 << 40)))
    return [*table((Column("STATISTIC"), Column("VALUE", right=True)), rows), f"taken {when}"]


def _statistic(title: str, value: int) -> str:
    if value == STAT_UNKNOWN:
        return UNKNOWN
    return format_size(value) if title in _BYTES else str(value)
