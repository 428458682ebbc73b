"""The live screen of vhost-balloonctl watch."""

from __future__ import annotations

import pytest

from tests.support.ctl_vms import GIB, GONE, MIB, vm
from vhost_balloon.ctl.model import Vm, read_vm, without_answer
from vhost_balloon.ctl.text import width
from vhost_balloon.ctl.watch_view import View


def view(*samples: list[Vm], **style: bool) -> View:
    shown = View(1.0, **style)
    for number, vms in enumerate(samples):
        shown.add(vms, float(number))
    return shown


def test_watch() -> None:
    first = [vm(actual=GIB, resident=GIB, freed_bytes=0, state="moving"), read_vm([GONE])]
    second = [vm(freed_bytes=100 * MIB), read_vm([GONE])]
    assert view(first, second).frame(109, 10, "12:34:56") == [
        " 2 VMs, 1 attached; the host spends 300 MiB on 1 GiB of guest memory"
        "                                12:34:56 ",
        "VM    STATE         MEMORY   TARGET   ACTUAL  LAST 15 S        RESIDENT  LAST 15 S"
        "        FREED/S  REPORTING",
        "web1  done           1 GiB  512 MiB  512 MiB               █▄   300 MiB               █▂"
        "  100 MiB  on",
        "old   disconnected       -        -        -                          -"
        "                         -  -",
        " q: quit",
    ]  # fmt: skip


def test_watch_on_a_terminal_without_block_characters() -> None:
    frame = view([vm()], unicode=False).frame(100, 5, "12:34:56")
    assert "".join(frame).isascii()


def test_watch_highlights_alarming_vms_and_dims_absent_ones() -> None:
    vms = [vm(state="stuck"), vm(id="b", state="out-of-memory"), vm(id="c"), read_vm([GONE])]
    vms.append(without_answer("d", "no answer"))
    lines = view(vms, colour=True).frame(100, 10, "12:34:56")
    starts = [line[: line.index("m") + 1] if line.startswith("\x1b") else "" for line in lines]
    away = ["\x1b[2m", "\x1b[31m", "\x1b[2m"]
    assert starts == ["\x1b[7m", "\x1b[1m", "\x1b[31m", "\x1b[31m", "", *away]
    assert all(line.endswith("\x1b[0m") for line, start in zip(lines, starts, strict=True) if start)


@pytest.mark.parametrize("columns", [1, 2, 10, 30, 79, 80, 200, 500])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 24])
def test_watch_fits_any_terminal(columns: int, height: int) -> None:
    vms = [vm(id=f"\u9b5a\x1b{number}" * 5) for number in range(10)]
    lines = view(vms, vms).frame(columns, height, "12:34:56")
    assert len(lines) <= height
    assert all(line.isprintable() and width(line) <= columns for line in lines)


def test_watch_scrolls() -> None:
    vms = [vm(id=f"vm{number}") for number in range(20)]
    shown = view(vms)

    def names(height: int = 8) -> list[str]:
        return [line.split()[0] for line in shown.frame(100, height, "")[2:-1]]

    assert names() == ["vm0", "vm1", "vm2", "vm3", "vm4"]
    assert shown.frame(100, 8, "")[-1] == " q: quit, arrows: scroll (1 to 5 of 20)"
    for keys, first in (("j", 1), ("jj", 3), ("k", 2), (" ", 7), ("b", 2), ("bb", 0), ("G", 15),
                        ("j", 15), ("g", 0), ("x?", 0), ("  ", 10)):  # fmt: skip
        shown.scroll(keys, 8)
        assert names()[0] == f"vm{first}"
    assert names(30)[0] == "vm0"  # a larger terminal shows all
    shown.add(vms[:2], 2.0)
    assert names() == ["vm0", "vm1"]


def test_watch_keeps_the_history_of_a_vm_that_was_silent() -> None:
    samples = [[vm(freed_bytes=0)], [without_answer("web1", "no answer")], [vm(freed_bytes=GIB)]]
    shown = view(*samples)
    row = shown.frame(109, 5, "")[2]
    assert row.endswith("  0 B  on")
    assert "▄ ▄" in row
    assert view(*samples[:2]).frame(109, 5, "")[2] == "web1  no answer"


def test_watch_forgets_a_vm_that_has_gone() -> None:
    shown = view([vm(resident=GIB)], [], [vm(resident=0)])
    assert "█" not in "".join(shown.frame(120, 5, "")).partition("RESIDENT")[2]
