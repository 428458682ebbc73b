"""vhost-balloonctl's output: list, status, watch and the progress bar."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.ctl import listing
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.model import Vm, read_vm, without_answer
from vhost_balloon.ctl.progress import progress_line
from vhost_balloon.ctl.terminal import decode_keys
from vhost_balloon.ctl.text import width
from vhost_balloon.ctl.watch_view import View

MIB, GIB = 1 << 20, 1 << 30


def vm(**members: Any) -> Vm:
    """Return web1, attached, with half of its memory in the balloon."""
    known = {
        "id": "web1", "attached": True, "state": "done", "guest-memory": GIB, "target": GIB // 2,
        "actual": GIB // 2, "resident": 300 * MIB, "freed-bytes": 3 * GIB, "pause-reasons": [],
        "features": ["page-reporting"], "socket-path": "/run/web1.sock", "driver-ready": True,
    }  # fmt: skip
    known |= {name.replace("_", "-"): value for name, value in members.items()}
    return read_vm([{name: value for name, value in known.items() if value is not None}])


GONE = {"id": "old", "attached": False, "state": "disconnected"}


# Checking answers


def test_unknown_values_are_none() -> None:
    gone = read_vm([GONE])
    assert (gone.target, gone.actual, gone.resident, gone.socket_path) == (None,) * 4
    assert (gone.memory, gone.paused, gone.freed) == (0, (), 0)


@pytest.mark.parametrize(
    "answer",
    [None, {}, "x", [], [1], [{}], [{"id": "a"}] * 2, [{"id": 5}], [{"id": "a", "actual": "x"}],
     [{"id": "a", "actual": True}], [{"id": "a", "actual": -1}], [{"id": "a", "actual": 1 << 64}],
     [{"id": "a", "actual": 1.5}], [{"id": "a", "attached": 1}], [{"id": "a", "state": None}],
     [{"id": "a", "pause-reasons": "x"}], [{"id": "a", "pause-reasons": [1]}],
     [{"id": "a", "pause-reasons": ["x" * 65]}], [{"id": "a", "pause-reasons": ["x"] * 65}],
     [{"id": "a", "state": "x" * 65}], [{"id": "a", "x": [[[[[[[[[]]]]]]]]]}]],
)  # fmt: skip
def test_an_unexpected_answer_is_an_error(answer: Any) -> None:
    with pytest.raises(CtlError, match="unexpected answer"):
        read_vm(answer)


TEXT = st.sampled_from(["", "done", "\x1b[2J\n", "\ud800", "\u9b5a" * 40, "x" * 200])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda values: st.lists(values) | st.dictionaries(TEXT, values),
    max_leaves=10,
)
MEMBERS = st.sampled_from(
    ["id", "attached", "state", "guest-memory", "target", "pending", "actual", "resident",
     "pause-reasons", "freed-bytes", "socket-path", "queues", "regions", "features", "stats-age",
     "huge-pages", "refused-bytes", "ring-errors", "front-end-errors", "front-end-pid", "balloon"]
)  # fmt: skip


@given(st.dictionaries(MEMBERS, JSON))
def test_any_answer_is_shown_or_an_error(members: dict[str, Any]) -> None:
    """As printable lines, and as JSON."""
    try:
        found = read_vm([members], "web1")
        lines = [*listing.overview([found], 80), *listing.details(found, None)]
    except CtlError:
        return
    assert all(map(str.isprintable, lines))
    assert json.loads(json.dumps(found.raw)).keys() == {"id", *members}


def test_the_given_name_overrides_the_answers() -> None:
    answers: list[list[dict[str, Any]]] = [[{"id": "bank"}], [{}], [{"id": 5}]]
    for answer in answers:
        found = read_vm(answer, "web1")
        assert (found.id, found.raw["id"]) == ("web1", "web1")


@pytest.mark.parametrize(
    ("errors", "total"),
    [(None, 0), (3, 3), ({}, 0), ({"inflate": {"loop": 2, "oversized": 1}, "stats": {}}, 3)],
)
def test_ring_errors_are_a_number_or_numbers_by_queue_and_reason(errors: Any, total: int) -> None:
    assert f"  ring errors           {total}" in listing.details(vm(ring_errors=errors), None)


@pytest.mark.parametrize(
    "members",
    [{"queues": [5]}, {"queues": [{"index": "x"}]}, {"regions": {}}, {"refused_bytes": {"a": "b"}},
     {"stats_age": "old"}, {"stats_age": -1}, {"stats_age": 1e300}, {"front_end_pid": "x"},
     {"features": [1]}, {"huge_pages": 5}, {"huge_pages": {"whole": "x"}}, {"ring_errors": "x"},
     {"ring_errors": {"inflate": {"loop": -1}}}, {"ring_errors": [1]}],
)  # fmt: skip
def test_unexpected_details_are_an_error(members: dict[str, Any]) -> None:
    with pytest.raises(CtlError, match="unexpected answer"):
        listing.details(vm(**members), 80)


# list and status


def test_list() -> None:
    paused = vm(id="db1", state="stuck", pause_reasons=["operator", "poison"])
    assert listing.overview([vm(), paused, read_vm([GONE])], None) == [
        "VM    STATE         MEMORY   TARGET   ACTUAL  RESIDENT  FREED  REPORTING",
        "web1  done           1 GiB  512 MiB  512 MiB   300 MiB  3 GiB  on",
        "db1   stuck          1 GiB  512 MiB  512 MiB   300 MiB  3 GiB  paused: operator, poison",
        "old   disconnected       -        -        -         -    0 B  -",
    ]


def test_list_of_vms_that_do_not_answer() -> None:
    silent = without_answer("quiet", "no answer within 1 s")
    odd = without_answer("x", "refused: \x1b[2J" + "y" * 200)
    lines = listing.overview([vm(), silent, odd], None)
    assert lines[0].startswith("VM     STATE  MEMORY ")
    assert lines[2:] == ["quiet  no answer within 1 s", "x      refused: \\x1b[2J" + "y" * 200]
    assert listing.overview([silent], None)[1] == "quiet  no answer within 1 s"
    assert listing.overview([silent, odd], 20)[1:] == [
        "quiet  no answer wi~", "x      refused: \\x1~",
    ]  # fmt: skip


def test_list_of_a_guest_without_reporting() -> None:
    assert listing.reporting(vm(features=["version-1"])) == "-"


@pytest.mark.parametrize("columns", range(1, 100, 7))
def test_list_fits_any_terminal(columns: int) -> None:
    name = "x\x1b[31m" * 20
    lines = listing.overview([vm(), vm(id=name, state="out-of-memory")], columns)
    assert len(lines) == 3
    assert all(line.isprintable() and width(line) <= columns for line in lines)


def test_status() -> None:
    full = vm(
        front_end_pid=42,
        pending=True,
        regions=[{"backing": "tmpfs", "page-size": 4096}] * 2,
        queues=[
            {"index": 0, "queue": "inflate", "size": 64, "enabled": True, "requests": 7},
            {"index": 2, "size": 32, "enabled": False, "requests": 0, "broken": "loop"},
            {"index": 3, "queue": "stats", "size": 32, "enabled": False, "requests": 1},
        ],
        refused_bytes={"poison": 2 * MIB, "late": MIB},
        reported_bytes=GIB,
        stats_age=2.4,
        balloon=GIB // 2,
        huge_pages={"whole": 200, "partial": 3, "waiting-bytes": 3 * MIB},
        huge_pages_freed=250,
    )
    assert listing.details(full, None) == [
        "web1: done",
        "  socket                /run/web1.sock",
        "  front end             process 42",
        "  guest's driver        ready",
        "  features              page-reporting",
        "  free page reporting   on",
        "  guest memory          1 GiB (tmpfs, pages of 4 KiB)",
        "  target                512 MiB (pending: the guest's driver is not ready)",
        "  actual                512 MiB",
        "  balloon               512 MiB",
        "  huge pages in it      200 whole (250 freed so far), 3 in part (3 MiB)",
        "  resident on the host  300 MiB",
        "  reported              1 GiB",
        "  freed                 3 GiB",
        "  not discarded         poison 2 MiB, late 1 MiB",
        "  ring errors           0",
        "  front end errors      0",
        "  last statistics       2 s ago",
        "",
        "  RING  QUEUE    SIZE  STATE          REQUESTS",
        "     0  inflate    64  running               7",
        "     2  -          32  stopped: loop         0",
        "     3  stats      32  disabled              1",
    ]
    assert all(width(line) <= 30 for line in listing.details(full, 30))


def test_status_without_a_front_end_omits_unknown_values() -> None:
    lines = listing.details(read_vm([GONE]), None)
    assert "  front end         not attached" in lines
    assert not any("actual" in line for line in lines)


def test_statistics() -> None:
    lines = listing.statistics({"stat-free-memory": 5 * MIB, "stat-oom-kills": 2}, 0)
    assert lines[:3] == ["STATISTIC    VALUE", "free memory  5 MiB", "oom kills        2"]
    assert lines[3].startswith("taken 19")
    assert listing.statistics({}, (1 << 64) - 1)


# watch


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


def test_keys() -> None:
    assert decode_keys(b"q") == "q"
    assert decode_keys(b"\x1b[A\x1b[Bj\x1bOA\x1b[5~\x1b[6~\x1b[H\x1b[F") == "kjjkb gG"
    assert "q" not in decode_keys(b"\x00\xff\x1b\xc3\xa9")
    assert decode_keys(b"") == ""


# The progress bar


def test_progress() -> None:
    moving = vm(state="moving", actual=768 * MIB)
    assert progress_line(moving, GIB, 1.2) == (
        f"web1 {'█' * 15}{'░' * 15}  50%  768 MiB of 512 MiB, 1 s"
    )
    assert progress_line(vm(), GIB, 1.2, unicode=False).startswith(f"web1 {'#' * 30} 100% ")
    further = vm(state="moving", actual=2 * GIB)
    assert "   0%" in progress_line(further, GIB, 0)
    assert " 100%" in progress_line(vm(), GIB // 2, 0)


def test_progress_without_a_driver() -> None:
    waits = vm(state="no-driver", actual=None, target=GIB)
    assert progress_line(waits, None, 3.0) == f"web1 {'░' * 30} waiting for the guest's driver, 3 s"
