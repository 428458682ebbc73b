"""Lays out the live screen of `watch`: figures, and their history as spark lines. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

from vhost_balloon.ctl.hub.model import Policy
from vhost_balloon.ctl.hub.view import policy_titles, reasons
from vhost_balloon.ctl.listing import memory, names, reporting, with_reasons
from vhost_balloon.ctl.model import Vm
from vhost_balloon.ctl.text import Column, pad, shorten, spark, table, width
from vhost_balloon.printable import printable
from vhost_balloon.sizes import UNKNOWN, format_size

MIN_SPARK: Final = 10
MAX_SPARK: Final = 60
"""Columns of a spark line, one a sample."""

_ALARMING: Final = ("stuck", "out-of-memory")  # and VMs that do not answer
_ABSENT: Final = ("disconnected", "no-driver")
_PAINT: Final = {"title": "7", "alarm-title": "7;31", "bold": "1", "alarm": "31", "faint": "2"}
_FIXED_LINES: Final = 2  # the table's head, the foot


class History:
    """One VM's last samples."""

    def __init__(self) -> None:
        self.resident: deque[int | None] = deque(maxlen=MAX_SPARK)
        self.actual: deque[int | None] = deque(maxlen=MAX_SPARK)
        self.freed_rate = 0.0  # bytes a second
        self._freed: tuple[int, float] | None = None

    def add(self, vm: Vm, now: float) -> None:
        self.resident.append(vm.resident)
        self.actual.append(vm.actual)
        if vm.error is not None:
            self._freed, self.freed_rate = None, 0.0
            return
        if self._freed is not None and now > self._freed[1]:
            self.freed_rate = max(0, vm.freed - self._freed[0]) / (now - self._freed[1])
        self._freed = vm.freed, now


T = TypeVar("T")


class Screen(Generic[T]):
    """Title lines, a table that can be scrolled, and a foot."""

    def __init__(self, *, colour: bool) -> None:
        self.colour = colour
        self.vms: Sequence[T] = ()
        self.first = 0

    def titles(self) -> list[tuple[str, str]]:
        """Return the kind (_PAINT) and the text of each title line; the clock joins the first."""
        raise NotImplementedError

    def table(self, vms: Sequence[T], columns: int) -> list[str]:
        """Return the table's head and a line for each of these VMs."""
        raise NotImplementedError

    def kind(self, vm: T) -> str:
        """Return how a VM's line is painted (_PAINT), "" for plain."""
        raise NotImplementedError

    def scroll(self, keys: str, height: int) -> None:
        """Scroll by the keys of `less`."""
        page = self._page(height)
        steps = {"j": 1, "k": -1, " ": page, "b": -page, "g": -len(self.vms), "G": len(self.vms)}
        for key in keys:
            most = max(0, len(self.vms) - page)
            self.first = min(max(self.first + steps.get(key, 0), 0), most)

    def _page(self, height: int) -> int:
        return max(1, height - len(self.titles()) - _FIXED_LINES)

    def frame(self, columns: int, height: int, clock: str) -> list[str]:
        """Return at most `height` lines of at most `columns` columns (without colour codes)."""
        self.scroll("?", height)  # the terminal may have grown
        shown = self.vms[self.first : self.first + self._page(height)]
        head, *rows = self.table(shown, columns)
        (kind, title), *others = self.titles()
        lines = [self._paint(kind, _with_clock(title, clock, columns))]
        lines += [self._paint(kind, pad(shorten(text, columns), columns)) for kind, text in others]
        lines.append(self._paint("bold", head))
        lines += [self._paint(self.kind(vm), row) for vm, row in zip(shown, rows, strict=True)]
        lines.append(self._paint("faint", shorten(self._foot(len(shown)), columns)))
        return lines[:height]

    def _foot(self, shown: int) -> str:
        if shown == len(self.vms):
            return " q: quit"
        last = self.first + shown
        return f" q: quit, arrows: scroll ({self.first + 1} to {last} of {len(self.vms)})"

    def _paint(self, kind: str, text: str) -> str:
        return f"\x1b[{_PAINT[kind]}m{text}\x1b[0m" if self.colour and kind else text


def _with_clock(text: str, clock: str, columns: int) -> str:
    clock = f" {clock} "
    text = shorten(text, max(0, columns - len(clock)))
    return shorten(pad(text, columns - len(clock)) + clock, columns)


class View(Screen[Vm]):
    """The screen of `watch`."""

    def __init__(self, interval: float, *, unicode: bool = True, colour: bool = False) -> None:
        super().__init__(colour=colour)
        self.interval = interval
        self.unicode = unicode
        self.policy: Policy | None = None
        self._histories: dict[str, History] = {}

    def add(self, vms: Sequence[Vm], now: float, policy: Policy | None = None) -> None:
        """Add a sample of all VMs, taken at `now` (seconds). Absent VMs are forgotten.

        policy: None for a screen without it.
        """
        self._histories = {vm.id: self._histories.get(vm.id) or History() for vm in vms}
        for vm in vms:
            self._histories[vm.id].add(vm, now)
        self.vms, self.policy = vms, policy

    def titles(self) -> list[tuple[str, str]]:
        attached = sum(vm.attached for vm in self.vms)
        known = [vm for vm in self.vms if vm.resident is not None]
        resident = sum(vm.resident or 0 for vm in known)
        vms = "1 VM" if len(self.vms) == 1 else f"{len(self.vms)} VMs"
        text = (
            f" {vms}, {attached} attached; the host spends {format_size(resident)} "
            f"on {format_size(sum(vm.memory for vm in known))} of guest memory"
        )
        return [("title", text), *([] if self.policy is None else policy_titles(self.policy))]

    def table(self, vms: Sequence[Vm], columns: int) -> list[str]:
        """Spark lines take the room that the figures leave, but at least MIN_SPARK columns."""
        told = None if self.policy is None else reasons(self.policy, columns)
        bare = max(width(line) for line in self._lay_out(vms, told, 0, None))
        room = min(MAX_SPARK, max(MIN_SPARK, (columns - bare) // 2))
        return self._lay_out(vms, told, room, columns)

    def _lay_out(
        self, vms: Sequence[Vm], told: Mapping[str, str] | None, sparks: int, room: int | None
    ) -> list[str]:
        span = f"LAST {round(sparks * self.interval)} S"[:sparks]
        columns: tuple[Column, ...] = (
            Column("VM"),
            Column("STATE"),
            Column("MEMORY", right=True, rank=4),
            Column("TARGET", right=True, rank=2),
            Column("ACTUAL", right=True),
            Column(span, rank=1),
            Column("RESIDENT", right=True),
            Column(span),
            Column("FREED/S", right=True, rank=5),
            Column("REPORTING", rank=3),
        )
        shown_names = names([vm.id for vm in vms], cut=True)
        rows = [self._row(vm, name, sparks) for vm, name in zip(vms, shown_names, strict=True)]
        if told is not None:
            columns, rows = with_reasons(columns, rows, vms, told)
        return table(columns, rows, room)

    def _row(self, vm: Vm, name: str, sparks: int) -> tuple[str, ...]:
        if vm.error is not None:
            return name, printable(vm.error)
        history = self._histories[vm.id]
        actual, resident = (
            spark([*values], vm.memory, sparks, unicode=self.unicode)
            for values in (history.actual, history.resident)
        )
        return (
            name,
            printable(vm.state),
            memory(vm),
            format_size(vm.target),
            format_size(vm.actual),
            actual,
            format_size(vm.resident),
            resident,
            format_size(round(history.freed_rate)) if vm.attached else UNKNOWN,
            reporting(vm),
        )

    def kind(self, vm: Vm) -> str:
        if vm.error is not None or vm.state in _ALARMING:
            return "alarm"
        return "faint" if vm.state in _ABSENT else ""
