"""Runs one soak from start to end and checks its invariants."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any, Final

from tests.rig.inside import workload
from tests.rig.memory import MiB
from tests.soak.fleet import Costs, Fleet, running
from tests.soak.play import BESIDE, Play
from tests.support.vms.guests import corruption

MEMORY_TOLERANCE: Final = 2 * MiB
"""Average growth in bytes allowed per daemon from start to end; descriptors must not grow."""

LONGEST_PAUSE: Final = 10.0
LONGEST_BESIDE: Final = 1.0
"""Longest waits allowed for the balloon, in seconds: over a restart, and beside other restarts."""

_BAD_SIGNS: Final = re.compile(
    r"Traceback|Watchdog timeout|would not survive|was lost|cannot be used|answered and nothing"
    r"|real\d: front end gone|probe: front end gone|waiting for the service manager"
    r"|has to wait|start anew|has the VM and cannot be killed|internal error"
)


@dataclass
class Outcome:
    """The result of a soak."""

    seed: int
    start: Costs
    end: Costs
    herd: dict[str, Any]
    acts: dict[str, int]
    waited: dict[str, float]
    integrity: list[workload.IntegrityReport]
    problems: list[str] = field(default_factory=list)

    @property
    def restarts(self) -> int:
        return sum(self.acts[kind] for kind in self.waited if kind in self.acts)

    def summary(self) -> str:
        pauses = ", ".join(f"{kind} {wait:.2f} s" for kind, wait in self.waited.items())
        files = sum(report.verified for report in self.integrity)
        lines = [
            f"seed {self.seed}: {self.restarts} restarts survived",
            f"longest pause of the balloon: {pauses}",
            f"acts: {self.acts}",
            f"simulated guests: {self.herd}",
            f"real guests: {files} files verified, bad bytes "
            f"{[report.bad_bytes for report in self.integrity]}",
            f"start: {self.start}",
            f"end:   {self.end}",
            *(f"PROBLEM: {problem}" for problem in self.problems),
            "no problems" if not self.problems else f"{len(self.problems)} problems",
        ]
        return "\n".join(lines)


def soak(seconds: float, real: int, simulated: int, seed: int) -> Outcome:
    """Run everything for that many seconds, between restarts that make both ends comparable."""
    with running(real, simulated, seed) as fleet:
        play = Play(fleet, seed)
        _live(fleet, play, 3.0)
        play.restart_all()
        start = fleet.costs()
        began = time.monotonic()
        files = max(int(REAL_FILES * MiB / FILE), 3)
        jobs = {
            vm: workload.Integrity(guest, int(seconds), FILE, files)
            for vm, guest in fleet.real.items()
        }
        herd = _live(fleet, play, seconds - (time.monotonic() - began))
        integrity = [job.wait(300) for job in jobs.values()]
        play.restart_all()
        end = fleet.costs()
        outcome = Outcome(seed, start, end, herd, dict(play.counts), play.waited, integrity)
        outcome.problems += herd.pop("problems")
        outcome.problems += _found_at_the_end(fleet, outcome)
        return outcome


FILE: Final = 4 * MiB
REAL_FILES: Final = 120
"""Maximum MiB of files in a real guest."""


def _live(fleet: Fleet, play: Play, seconds: float) -> dict[str, Any]:
    """Let all guests act, bring them to rest, and return the herd's report."""
    fleet.herd.call("move")
    play.run(seconds)
    report: dict[str, Any] = fleet.herd.call("rest", timeout=300)
    fleet.restore()
    return report


def _found_at_the_end(fleet: Fleet, outcome: Outcome) -> list[str]:
    found = []
    start, end = outcome.start, outcome.end
    for vm, held in start.descriptors.items():
        if end.descriptors[vm] != held:
            found.append(f"{vm} has {end.descriptors[vm]} descriptors at the end, and had {held}")
    if end.memory > start.memory + MEMORY_TOLERANCE * len(fleet.vms):
        found.append("the daemons have grown")
    if outcome.acts.get("SIGHUP put off", 0) > outcome.acts["SIGHUP"] // 3:
        found.append("daemons hardly ever re-execute themselves")
    if max(outcome.waited.values()) > LONGEST_PAUSE:
        found.append(f"a guest waited for its balloon for more than {LONGEST_PAUSE:g} s")
    if outcome.waited[BESIDE] > LONGEST_BESIDE:
        found.append(f"restarts of others made a guest wait for {outcome.waited[BESIDE]:.2f} s")
    found += [f"{report.bad_bytes} bad bytes" for report in outcome.integrity if report.bad_bytes]
    if not all(report.verified for report in outcome.integrity):
        found.append("a real guest has verified nothing")
    for vm, guest in fleet.real.items():
        found += [f"{vm}: {line}" for line in corruption(guest)]
    for vm in fleet.vms:
        state = fleet.query(vm)["state"]
        if state not in {"done", "disconnected"}:
            found.append(f"{vm} is {state}")
    log = fleet.host.journal("vhost-balloon@*.service")
    found += [line for line in log.splitlines() if _BAD_SIGNS.search(line)][:50]
    return found
