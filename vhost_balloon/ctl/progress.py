"""The progress bar of `set --wait`: one line on a terminal, erased at the end."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from vhost_balloon.ctl.model import Vm
from vhost_balloon.ctl.output import Output
from vhost_balloon.ctl.text import shorten
from vhost_balloon.name_text import shown
from vhost_balloon.sizes import format_size

BAR_COLUMNS: Final = 30
_ERASE: Final = "\r\x1b[K"


class Progress:
    """Draws the bar. A context manager that erases it, so that the next output starts the line."""

    def __init__(self, output: Output, *, shown: bool) -> None:
        """The bar is never shown without a terminal."""
        self._output = output
        self._shown = shown and output.live
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._drawn:
            self._output.write(_ERASE)

    def show(self, vm: Vm, start: int | None, seconds: float) -> None:
        """Draw the bar. start: the actual size in bytes before the change."""
        if not self._shown:
            return
        line = progress_line(vm, start, seconds, unicode=self._output.unicode)
        self._drawn = True  # first, as Ctrl-C may interrupt the write
        self._output.write(_ERASE + shorten(line, self._output.size().columns - 1))


def progress_line(vm: Vm, start: int | None, seconds: float, *, unicode: bool = True) -> str:
    """Return the bar and its figures."""
    full, empty = ("█", "░") if unicode else ("#", ".")
    done = _share_done(start, vm.actual, vm.target)
    length = int(done * BAR_COLUMNS)
    bar = full * length + empty * (BAR_COLUMNS - length)
    if vm.state == "no-driver":
        return f"{shown(vm.id)} {bar} waiting for the guest's driver, {seconds:.0f} s"
    figures = f"{format_size(vm.actual)} of {format_size(vm.target)}"
    return f"{shown(vm.id)} {bar} {done:4.0%}  {figures}, {seconds:.0f} s"


def _share_done(start: int | None, actual: int | None, target: int | None) -> float:
    """Return the share, 0 to 1, of the way from start to target; 0 if a size is unknown."""
    if start is None or actual is None or target is None:
        return 0.0
    way = abs(start - target)
    return 1 - min(1.0, abs(actual - target) / way) if way else 1.0
