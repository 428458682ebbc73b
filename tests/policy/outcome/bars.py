"""The bars that the rule has to meet, and those of earlier work that it is known to miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.policy.outcome.measures import Measures
from tests.policy.outcome.results import Results
from tests.policy.outcome.tables import Table, figure

OURS = "ours"
QUICK_RELIEF = ("cache", "sawtooth", "sawread", "bigburst", "allgrow", "mixed", "liars", "host256")
SECONDS = 1800


class Bar(NamedTuple):
    """met: None if it cannot be told from these runs. known: whether missing it is known."""

    name: str
    limit: str
    found: str
    met: bool | None
    known: bool = False


def bars(results: Results, deciding: float | None = None) -> Iterator[Bar]:
    """All bars. deciding: ms that deciding about 200 VMs takes, None if that was not measured."""
    oom = results.total(OURS, lambda run: run.host_oom)
    yield Bar("host OOM s, sum", "0", figure(oom), oom == 0)
    for rival in ("Proxmox", "MoM"):
        yield _part(results, "guest distress s", lambda run: run.distress, rival, 0.10)
    yield _part(results, "guest OOM s", lambda run: run.guest_oom, "Proxmox", 0.03)
    yield _part(results, "swap-in GiB", lambda run: run.swap_in, "Proxmox", 0.10)
    yield _well(results)
    yield _met(results)
    yield from _relief(results)
    yield from _quiet(results)
    yield _reversals(results, 0.40)
    calm = {
        name: results.mean(OURS, name, lambda run: run.calm_reversals)
        for name in results.winnable
        if name != "silent"
    }
    worst = max(calm, key=lambda name: calm[name], default="")
    most = calm.get(worst, 0.0)
    yield Bar(
        "reversals without saw guests, each", "<= 12", f"{figure(most)} ({worst})", most <= 12
    )
    if deciding is not None:
        yield Bar("decide() for 200 VMs, ms", "<= 5", figure(deciding), deciding <= 5)
    yield _reversals(results, 0.20, known=True)
    yield _part(results, "GiB moved", lambda run: run.moved, "Proxmox", 0.50, known=True)
    jain = results.jain(OURS, results.winnable)
    met = None if jain is None else jain >= 0.9
    yield Bar("Jain index by weight", ">= 0.9", figure(jain), met, known=True)


def table(results: Results, deciding: float | None = None) -> Table:
    """A line for each bar. deciding: as for bars()."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    return [
        ["bar", "limit", "found", "result"],
        *(
            [
                bar.name,
                bar.limit,
                bar.found,
                words[bar.met] + (" (known)" if bar.known and bar.met is False else ""),
            ]
            for bar in bars(results, deciding)
        ),
    ]


def _part(
    results: Results,
    name: str,
    of: Callable[[Measures], float],
    rival: str,
    share: float,
    *,
    known: bool = False,
) -> Bar:
    """At most a share of a rival's sum."""
    own = results.total(OURS, of)
    limit = f"<= {100 * share:.0f} % of {rival}'s"
    if not results.has(rival):
        return Bar(name, limit, figure(own), None, known)
    other = results.total(rival, of)
    found = f"{figure(own)} of {figure(other)}"
    if other > 0:
        found += f", {100 * own / other:.1f} %"
    return Bar(name, limit, found, own <= share * other, known)


def _well(results: Results) -> Bar:
    name, limit = "time with available >= R0", ">= 0.98 of the oracle's"
    if not results.has("oracle"):
        return Bar(name, limit, "-", None)
    own = results.total(OURS, lambda run: SECONDS - run.below)
    best = results.total("oracle", lambda run: SECONDS - run.below)
    return Bar(name, limit, f"{own / best:.3f}", own >= 0.98 * best)


def _met(results: Results) -> Bar:
    name, limit = "need met %", ">= Proxmox's - 1"
    own, other = (results.met(rule, results.winnable) for rule in (OURS, "Proxmox"))
    if own is None or other is None:
        return Bar(name, limit, figure(own), None)
    return Bar(name, limit, f"{own:.1f} against {other:.1f}", own >= other - 1)


def _relief(results: Results) -> Iterator[Bar]:
    most = [name for name in results.winnable if name != "silent"]
    found = results.relief(OURS, most)
    yield Bar("relief p99 s, all but silent", "<= 15", figure(found), found <= 15)
    for name in QUICK_RELIEF:
        if name in results.scenarios:
            found = results.relief(OURS, [name])
            yield Bar(f"relief p99 s, {name}", "<= 12", figure(found), found <= 12)


def _quiet(results: Results) -> Iterator[Bar]:
    if "idle" in results.scenarios:
        moved = results.mean(OURS, "idle", lambda run: run.moved)
        yield Bar("idle: GiB moved", "0", figure(moved), moved == 0)
    if "psiflap" in results.scenarios:
        oom = results.mean(OURS, "psiflap", lambda run: run.host_oom)
        distress = results.mean(OURS, "psiflap", lambda run: run.distress)
        yield Bar("psiflap: host OOM s", "0", figure(oom), oom == 0)
        yield Bar("psiflap: guest distress s", "<= 1", figure(distress), distress <= 1)


def _reversals(results: Results, share: float, *, known: bool = False) -> Bar:
    name, limit = "reversals a VM and hour, mean", f"<= {100 * share:.0f} % of Proxmox's"
    own = results.reversals(OURS, results.winnable)
    if not results.has("Proxmox"):
        return Bar(name, limit, figure(own), None, known)
    other = results.reversals("Proxmox", results.winnable)
    found = f"{figure(own)} of {figure(other)}"
    return Bar(name, limit, found, own <= share * other, known)
