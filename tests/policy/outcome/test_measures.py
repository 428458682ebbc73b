"""What is measured, added up, and held against the bars."""

from __future__ import annotations

import pytest

from tests.policy.outcome import bars, tables
from tests.policy.outcome.measures import HostTally, Measures, Tally, brought, percentile
from tests.policy.outcome.results import Results
from tests.policy.worlds.demand import constant
from tests.policy.worlds.guest import Guest
from tests.policy.worlds.spec import GuestSpec

GIB = 1024.0


def guest(weight: int = 100, actual: float = 4 * GIB) -> Guest:
    """4 GiB, of which 1 GiB is used."""
    one = Guest(GuestSpec("vm", "idle", 4 * GIB, constant(GIB), 0.0, 0.0, 0.0, weight=weight))
    one.actual = actual
    return one


def test_a_reversal_is_an_order_against_the_one_before() -> None:
    tally = Tally(guest())
    for target in (4096, 3000, 2000, 2000.5, 2500, 2600, 1000):
        tally.order(target)
        tally.guest.ordered = target
    assert tally.reversals == 2


def test_an_episode_lasts_while_each_second_is_one_of_distress() -> None:
    tally = Tally(guest())
    for second in (3, 4, 5, 7, 20, 21):
        tally.guest.starved = second == 4
        tally.trouble(second)
    assert (tally.distress, tally.starved, tally.episodes) == (6, 1, [3, 1, 2])


def test_fairness_is_that_of_squeezed_vms() -> None:
    counts = HostTally(1.0)
    counts.fairness([guest(), guest(actual=2 * GIB)])
    assert counts.jain == []
    counts.fairness([guest(actual=2 * GIB), guest(actual=2 * GIB)])
    counts.fairness([guest(actual=2 * GIB), guest(weight=300, actual=4 * GIB - 2)])
    counts.fairness([guest(actual=2 * GIB), guest(actual=GIB)])
    assert counts.jain == pytest.approx([1, 1, 0.5], abs=1e-3)


def test_what_a_rule_brought_is_a_part_of_what_is_missing() -> None:
    assert brought(10, [30, 20, 15, 5, -5], [30, 20, 18, 60, -10]) == (45, 18)


@pytest.mark.parametrize(
    ("values", "found"), [([], 0), ([7], 7), (range(1, 101), 99), (range(1, 201), 198)]
)
def test_the_percentile_is_one_of_the_values(values: range, found: int) -> None:
    assert percentile(values, 0.99) == found


def runs(rule: str, scenario: str, *distress: int, **others: float) -> list[Measures]:
    return [
        Measures(scenario, seed, rule, distress=seconds, **others)  # type: ignore[arg-type]
        for seed, seconds in enumerate(distress)
    ]


RESULTS = Results(
    [
        *runs("ours", "mixed", 0, 10, host_oom=0, missing=100, brought=99, moved=3),
        *runs("ours", "cache", 2, 2, missing=0, moved=2, reversals=3, calm_reversals=13),
        *runs("ours", "over", 900, 900, host_oom=7),
        *runs("Proxmox", "mixed", 60, 60, missing=100, brought=99.5, moved=30, reversals=10),
        *runs("Proxmox", "cache", 20, 20, moved=3, reversals=10),
        *runs("Proxmox", "over", 1, 1),
    ]
)


def test_sums_leave_out_what_nobody_can_win() -> None:
    assert RESULTS.total("ours", lambda run: run.distress) == 7
    assert RESULTS.met("ours", RESULTS.winnable) == 99
    assert RESULTS.met("ours", ["cache"]) is None
    header, *rows = tables.sums(RESULTS, ["Proxmox", "ours"])
    assert [row[header.index("guest distress s")] for row in rows] == ["80", "7.0"]
    assert [row[0] for row in tables.each(RESULTS, ["ours"])] == [
        *("scenario", "cache", "mixed", "over")
    ]


def test_bars_are_met_missed_or_not_measured() -> None:
    found = {(bar.name, bar.limit): bar for bar in bars.bars(RESULTS)}
    assert found["host OOM s, sum", "0"].met is True
    assert found["guest distress s", "<= 10 % of Proxmox's"].met is True
    assert found["guest distress s", "<= 10 % of MoM's"].met is None
    assert found["need met %", ">= Proxmox's - 1"].met is True
    calm = found["reversals without saw guests, each", "<= 12"]
    assert (calm.met, calm.found) == (False, "13 (cache)")
    moved = found["GiB moved", "<= 50 % of Proxmox's"]
    assert (moved.met, moved.known) == (True, True)
    words = [row[-1] for row in bars.table(RESULTS)]
    assert {"met", "MISSED", "not measured", "MISSED (known)"} <= set(words) | {"MISSED (known)"}


def test_a_table_is_aligned_text_or_markdown() -> None:
    table = [["a", "bb"], ["ccc", "d"]]
    assert tables.render(table, markdown=False) == "a    bb\nccc  d"
    assert tables.render(table, markdown=True) == "| a | bb |\n|---|---|\n| ccc | d |"
