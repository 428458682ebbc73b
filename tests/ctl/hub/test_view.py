"""The policy as vhost-balloonctl lays it out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ctl_vms import vm
from tests.support.fakes.hub import GIB, document
from vhost_balloon.ctl.hub import view
from vhost_balloon.ctl.hub.model import PolicyVm, read_policy
from vhost_balloon.ctl.hub.screen import PolicyScreen
from vhost_balloon.ctl.model import without_answer
from vhost_balloon.ctl.text import width
from vhost_balloon.ctl.watch_view import View
from vhost_balloon.policy.settings import Mode

HOST = (
    "policy on: short, 1.1 GiB of 16 GiB available, reserve 2.3 GiB, k 0.48, pressure 2%, VMs can "
    "spare 1.85 GiB"
)


def found(name: str = "web1") -> PolicyVm:
    [one] = [vm for vm in read_policy(document()).vms if vm.id == name]
    return one


def test_the_table_at_120_columns() -> None:
    table = [
        "VM    REASON                    TARGET  ACTUAL  DEMAND     PEAK      KEEP     SPARE  "
        "RESIDENT  AGE",
        "db1   manual                     6 GiB   6 GiB       -        -         -         -  "
        "   6 GiB    -",
        "old   pinned: operator           4 GiB   4 GiB     0 B      0 B       0 B       0 B  "
        " 3.5 GiB  7 s",
        "web1  reclaim           4 GiB -> 3 GiB   4 GiB   1 GiB  1.5 GiB  1.65 GiB  1.85 GiB  "
        " 3.5 GiB  1 s",
    ]
    policy = read_policy(document())
    assert view.overview(policy, 120) == view.overview(policy, None) == [HOST, *table]


def test_the_table_at_80_columns() -> None:
    assert view.overview(read_policy(document()), 80) == [
        "policy on: short, 1.1 GiB of 16 GiB available, reserve 2.3 GiB, k 0.48, pressure",
        "2%, VMs can spare 1.85 GiB",
        "VM    REASON                    TARGET  ACTUAL  DEMAND     SPARE  RESIDENT  AGE",
        "db1   manual                     6 GiB   6 GiB       -         -     6 GiB    -",
        "old   pinned: operator           4 GiB   4 GiB     0 B       0 B   3.5 GiB  7 s",
        "web1  reclaim           4 GiB -> 3 GiB   4 GiB   1 GiB  1.85 GiB   3.5 GiB  1 s",
    ]


@pytest.mark.parametrize("columns", range(1, 130, 8))
def test_the_table_fits_any_terminal(columns: int) -> None:
    policy = read_policy(document())
    long = policy._replace(vms=(*policy.vms, found()._replace(id="\u9b5a\x1b[31m" * 20)))
    lines = view.overview(long, columns)
    assert all(line.isprintable() and width(line) <= columns for line in lines)


OLDER = ", ".join(["Parameter 'policy' is unexpected: its daemon is older than the policy"] * 28)
"""Why an order was refused: a VM's daemon chooses the words, and the hub allows some 2000
characters."""


def detailed(detail: str) -> Any:
    """Return the answer with this detail of web1."""
    answer = document()
    answer["vms"][2]["detail"] = detail
    return answer


def test_a_long_detail_is_cut_on_a_terminal_and_moves_no_column() -> None:
    policy = read_policy(detailed(OLDER))
    assert view.overview(policy, 80)[2:] == [
        "VM    REASON                        TARGET  ACTUAL  DEMAND     SPARE  RESIDENT",
        "db1   manual                         6 GiB   6 GiB       -         -     6 GiB",
        "old   pinned: operator               4 GiB   4 GiB     0 B       0 B   3.5 GiB",
        "web1  reclaim: Parameter ~  4 GiB -> 3 GiB   4 GiB   1 GiB  1.85 GiB   3.5 GiB",
    ]
    assert "reclaim: Parameter 'policy' i~  4 GiB -> 3 GiB" in view.overview(policy, 120)[-1]
    assert f"  reclaim: {OLDER}  4 GiB -> 3 GiB  " in view.overview(policy, None)[-1]


def test_explain_shows_a_long_detail_whole() -> None:
    policy = read_policy(detailed(OLDER))
    lines = view.explained(policy, policy.vms[2], 60)
    assert all(width(line) <= 60 for line in lines)
    assert f" web1: reclaim: {OLDER} " in " ".join(lines)


def test_the_state_of_the_host() -> None:
    well = read_policy(document(Mode.DRY_RUN, configured=Mode.OFF, available=9 * GIB, age=33.0))
    assert view.host_line(well) == (
        "policy dry-run (configured: off): plenty, 9 GiB of 16 GiB available, reserve 2.3 GiB, "
        "k 1.00, pressure 2%, 33 s ago"
    )
    assert view.host_line(read_policy(document(host=None))) == "policy on: no figures yet"
    unreadable = read_policy(document(readable=False, problems=["no \x1b meminfo"]))
    assert view.overview(unreadable, None)[:2] == [
        "policy on: the host's memory cannot be read", "note: no \\x1b meminfo",
    ]  # fmt: skip
    assert view.overview(read_policy(document(vms={})), None) == [HOST, "no VM"]


def test_a_vm_without_a_front_end_has_no_figures() -> None:
    away = document()["vms"][0] | {"reason": "no-driver", "size": 0, "target": 0, "actual": 0}
    policy = read_policy({"mode": "on", "vms": [away]})
    assert view.overview(policy, None)[2].split() == ["db1", "no-driver", *["-"] * 8]


def test_a_vm_whose_daemon_does_not_answer_has_a_reason_and_no_figures() -> None:
    policy = read_policy(document(vms={}, unanswered={"hung1": "no answer within 1 s"}))
    row = "hung1  stale: no answer within 1 s"
    assert view.overview(policy, 120)[-1].split("  -")[0].rstrip(" -") == row
    lines = view.explained(policy, policy.vms[0], None)
    assert lines[1:] == [
        "hung1 is left alone: its daemon gives the policy no figures (no answer within 1 s). Its "
        "target stays as it is until the daemon answers.",
        "",
        "hung1: stale: no answer within 1 s",
        "  last statistics  none",
    ]


def test_a_policy_that_is_off_is_one_line_with_what_to_do() -> None:
    [line] = view.overview(read_policy(document(Mode.OFF)), None)
    assert line.startswith("The policy is off and moves no VM. `vhost-balloonctl policy-mode ")
    [line] = view.overview(read_policy({"mode": "off"}), None)
    assert line == "policy off: no VM is moved"


def test_what_goes_back_by_order_is_shown_while_the_policy_is_off() -> None:
    answer = document() | {"mode": "off", "explanation": "Memory goes back by order."}
    lines = view.overview(read_policy(answer), None)
    assert lines[0] == "Memory goes back by order."
    assert [line.split()[0] for line in lines[1:]] == ["VM", "db1", "old", "web1"]


def test_a_vm_explained() -> None:
    lines = view.explained(read_policy(document(problems=["slow"])), found(), None)
    assert lines[0].startswith("The host has 1.1 GiB of 16 GiB available, less than its reserve")
    assert lines[1] == "note: slow"
    assert lines[2].startswith("web1 was asked to shrink from 4 GiB to 3 GiB, because the host has")
    assert lines[3:] == [
        "",
        "web1: reclaim",
        "  guest memory          4 GiB",
        "  ceiling               4 GiB",
        "  floor                 488 MiB",
        "  target                4 GiB",
        "  order                 3 GiB",
        "  actual                4 GiB",
        "  resident on the host  3.5 GiB",
        "  demand                1 GiB",
        "  demand lately         1.5 GiB",
        "  slack                 819 MiB",
        "  may keep              1.65 GiB",
        "  can spare             1.85 GiB",
        "  weight                100",
        "  short of memory       no",
        "  last statistics       1 s ago",
        "  orders so far         relief 1, reclaim 3",
        "  reversals             2",
    ]
    held = view.explained(read_policy(document()), found("db1"), 60)
    assert "  hold ends in          42 s" in held
    assert "  last statistics       none" in held
    assert not any(line.startswith("  demand") for line in held)
    assert all(width(line) <= 60 for line in held)


# The live screens


def test_the_screen_of_the_policy() -> None:
    screen = PolicyScreen(colour=True)
    screen.add(read_policy(document(problems=["slow"])))
    lines = screen.frame(80, 10, "12:34:56")
    assert [line[1 : line.index("m")] if line.startswith("\x1b") else "" for line in lines] == [
        "[7;31", "[31", "[1", "[2", "[2", "", "[2",
    ]  # fmt: skip
    screen.colour = False
    first, second, *_, foot = screen.frame(80, 10, "12:34:56")
    assert first.startswith(" policy on: short, 1.1 GiB of 16 GiB available, reserve 2.3 GiB")
    assert first.endswith("~ 12:34:56 ")
    assert (second.rstrip(), foot) == (" note: slow", " q: quit")
    assert screen.frame(80, 6, "")[-1] == " q: quit, arrows: scroll (1 to 2 of 3)"
    screen.add(read_policy(document(Mode.OFF)))
    assert screen.frame(80, 10, "")[0].startswith(" The policy is off and moves no VM.")


@pytest.mark.parametrize("columns", [1, 30, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 24])
def test_the_screen_fits_any_terminal(columns: int, height: int) -> None:
    screen = PolicyScreen()
    screen.add(read_policy(document(problems=["x" * 300] * 50)))
    watch = View(1.0)
    watch.add([vm()], 0.0, read_policy(document(problems=["x" * 300] * 50)))
    for lines in (screen.frame(columns, height, "now"), watch.frame(columns, height, "now")):
        assert len(lines) <= height
        assert all(line.isprintable() and width(line) <= columns for line in lines)


def test_watch_shows_the_policy_if_there_is_one() -> None:
    vms = [vm(), vm(id="new"), without_answer("db1", "no answer within 1 s")]
    plain, shown = View(1.0), View(1.0)
    plain.add(vms, 0.0)
    shown.add(vms, 0.0, read_policy(document()))
    before, after = plain.frame(160, 10, "now"), shown.frame(160, 10, "now")
    assert "POLICY" not in "".join(before)
    assert after[0] == before[0]
    assert after[1].rstrip() == f" {HOST}"
    assert after[2].endswith("  REPORTING  POLICY")
    assert after[3].endswith("  on         reclaim")
    assert after[4].endswith("  on         -")
    assert after[5] == before[4] == "db1   no answer within 1 s"
    shown.add(vms, 1.0, read_policy(detailed(OLDER)))
    assert shown.frame(160, 10, "now")[3].endswith(
        "  on         reclaim: Parameter 'policy' is unexpect~"
    )
    assert shown.frame(80, 10, "now")[3].endswith("  reclaim: Parameter ~")


PARTS = st.sampled_from(["\u9b5a", "\x1b", "\U000e0001", "e\u0301", "word ", "x"])


@given(PARTS, st.integers(1, 200), st.integers(1, 12))
def test_a_long_detail_fits_any_live_screen(text: str, columns: int, height: int) -> None:
    policy = read_policy(detailed(text * (2000 // len(text))))
    screen, watch = PolicyScreen(), View(1.0)
    screen.add(policy)
    watch.add([vm()], 0.0, policy)
    for lines in (screen.frame(columns, height, "now"), watch.frame(columns, height, "now")):
        assert len(lines) <= height
        assert all(line.isprintable() and width(line) <= columns for line in lines)
