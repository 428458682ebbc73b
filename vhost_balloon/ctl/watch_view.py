"""Lays out the live screen of `watch`: figures, and their history as spark lines. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from vhost_balloon.ctl.listing import memory, names, reporting
from vhost_balloon.ctl.model import Vm
from vhost_balloon.ctl.text import Column, pad, shorten, spark, table, width
from vhost_balloon.printable import printable
from vhost_balloon.sizes import UNKNOWN, format_size

MIN_SPARK: Final = 10
MAX_SPARK: Final = 60
"""Columns of a spark line, one a sample."""

_ALARMING: Final = ("stuck", "out-of-memory")  # and VMs that do not answer
_ABSENT: Final = ("disconnected", "no-driver")
_PAINT: Final = {"title": 7, "bold": 1, "alarm": 31, "faint": 2}
_FIXED_LINES: Final = 3  # the title, the table's head, the foot


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


class View:
    """The contents and the scroll position of the screen."""

    def __init__(self, interval: float, *, unicode: bool = True, colour: bool = False) -> None:
        self.interval = interval
        self.unicode = unicode
        self.colour = colour
        self.vms: Sequence[Vm] = ()
        self.first = 0
        self._histories: dict[str, History] = {}

    def add(self, vms: Sequence[Vm], now: float) -> None:
        """Add a sample of all VMs, taken at `now` (seconds). Absent VMs are forgotten."""
        self._histories = {vm.id: self._histories.get(vm.id) or History() for vm in vms}
        for vm in vms:
            self._histories[vm.id].add(vm, now)
        self.vms = vms

    def scroll(self, keys: str, height: int) -> None:
        """Scroll by the keys of `less`."""
        page = max(1, height - _FIXED_LINES)
        steps = {"j": 1, "k": -1, " ": page, "b": -page, "g": -len(self.vms), "G": len(self.vms)}
        for key in keys:
            most = max(0, len(self.vms) - page)
            self.first = min(max(self.first + steps.get(key, 0), 0), most)

    def frame(self, columns: int, height: int, clock: str) -> list[str]:
        """Return at most `height` lines of at most `columns` columns (without colour codes)."""
        page = max(1, height - _FIXED_LINES)
        self.scroll("?", height)  # the terminal may have grown
        shown = self.vms[self.first : self.first + page]
        head, *rows = self._table(shown, columns)
        lines = [self._paint("title", pad(self._title(columns, clock), columns))]
        lines.append(self._paint("bold", head))
        lines += [self._paint_row(vm, row) for vm, row in zip(shown, rows, strict=True)]
        lines.append(self._paint("faint", shorten(self._foot(len(shown)), columns)))
        return lines[:height]

    def _title(self, columns: int, clock: str) -> str:
        attached = sum(vm.attached for vm in self.vms)
        known = [vm for vm in self.vms if vm.resident is not None]
        resident = sum(vm.resident or 0 for vm in known)
        vms = "1 VM" if len(self.vms) == 1 else f"{len(self.vms)} VMs"
        text = (
            f" {vms}, {attached} attached; the host spends {format_size(resident)} "
            f"on {format_size(sum(vm.memory for vm in known))} of guest memory"
        )
        clock = f" {clock} "
        text = shorten(text, max(0, columns - len(clock)))
        return shorten(pad(text, columns - len(clock)) + clock, columns)

    def _foot(self, shown: int) -> str:
        if shown == len(self.vms):
            return " q: quit"
        last = self.first + shown
        return f" q: quit, arrows: scroll ({self.first + 1} to {last} of {len(self.vms)})"

    def _table(self, vms: Sequence[Vm], columns: int) -> list[str]:
        """Spark lines take the room that the figures leave, but at least MIN_SPARK columns."""
        bare = max(width(line) for line in self._lay_out(vms, 0, None))
        room = min(MAX_SPARK, max(MIN_SPARK, (columns - bare) // 2))
        return self._lay_out(vms, room, columns)

    def _lay_out(self, vms: Sequence[Vm], sparks: int, room: int | None) -> list[str]:
        span = f"LAST {round(sparks * self.interval)} S"[:sparks]
        columns = (
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
        rows = zip(vms, names(vms, cut=True), strict=True)
        return table(columns, [self._row(vm, name, sparks) for vm, name in rows], room)

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

    def _paint_row(self, vm: Vm, row: str) -> str:
        if vm.error is not None or vm.state in _ALARMING:
            return self._paint("alarm", row)
        return self._paint("faint", row) if vm.state in _ABSENT else row

    def _paint(self, kind: str, text: str) -> str:
        return f"\x1b[{_PAINT[kind]}m{text}\x1b[0m" if self.colour else text
