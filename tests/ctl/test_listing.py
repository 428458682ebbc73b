"""vhost-balloonctl's output of list, status and stats."""

from __future__ import annotations

import pytest

from tests.support.ctl_vms import GIB, GONE, MIB, vm
from vhost_balloon.ctl import listing
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.model import read_vm, without_answer
from vhost_balloon.ctl.text import width


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


def test_list_says_where_to_read_on_if_pins_are_unknown() -> None:
    unknown = vm(id="db1", pause_reasons=["pins-unknown"])
    assert listing.overview([vm(), unknown], None)[3:] == [
        "pins-unknown: `vhost-balloonctl status VM` says why, and what to do"
    ]
    assert all(width(line) <= 30 for line in listing.overview([unknown], 30))


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


def test_status_tells_of_a_hold() -> None:
    line = "  host's policy         leaves it alone (manual order)"
    assert line in listing.details(vm(held=True), None)
    assert f"{line}, 42 s left" in listing.details(vm(held=True, held_for=41.7), None)
    assert not any("policy" in text for text in listing.details(vm(held=False), None))


def test_status_ends_with_the_hint() -> None:
    known = vm(pause_reasons=["pins-unknown"], pause_hint="cannot look; use \x1b another user")
    assert listing.details(known, None)[-2:] == ["", "cannot look; use \\x1b another user"]
    assert listing.details(known, 20)[-2:] == ["cannot look; use", "\\x1b another user"]
    with pytest.raises(CtlError, match="pause-hint"):
        listing.details(vm(pause_hint="x" * 1001), None)


def test_status_without_a_front_end_omits_unknown_values() -> None:
    lines = listing.details(read_vm([GONE]), None)
    assert "  front end         not attached" in lines
    assert not any("actual" in line for line in lines)


def test_statistics() -> None:
    lines = listing.statistics({"stat-free-memory": 5 * MIB, "stat-oom-kills": 2}, 0)
    assert lines[:3] == ["STATISTIC    VALUE", "free memory  5 MiB", "oom kills        2"]
    assert lines[3].startswith("taken 19")
    assert listing.statistics({}, (1 << 64) - 1)


def test_statistics_that_the_guest_does_not_know_are_dashes() -> None:
    values = {"stat-swap-in": (1 << 64) - 1, "stat-free-memory": GIB, "stat-oom-kills": 0}
    lines = listing.statistics(values, 1)
    assert lines[:4] == [
        "STATISTIC    VALUE",
        "swap in          -",
        "free memory  1 GiB",
        "oom kills        0",
    ]
