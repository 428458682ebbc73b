"""Runs a rule in a world."""

from __future__ import annotations

from collections.abc import Sequence

from tests.policy.outcome.measures import GIB, JAIN_EVERY, HostTally, Measures, Tally, brought
from tests.policy.recording import Recording, VmRecording
from tests.policy.rule import HostView, Rule, VmView
from tests.policy.worlds.demand import LENGTH
from tests.policy.worlds.guest import Guest
from tests.policy.worlds.host import Host
from tests.policy.worlds.world import World
from vhost_balloon.policy.inputs import default_reserve

MIB = 1 << 20


class Run:
    """A run of one rule in one world; available has the host's figure at each second after it."""

    def __init__(self, world: World, rule: Rule, *, record: bool = False) -> None:
        bind = getattr(rule, "bind", None)
        if bind is not None:
            bind(world.future)
        self._world, self._rule = world, rule
        self._host = Host(world.host)
        self._guests = [Guest(spec) for spec in world.guests]
        self._tallies = [Tally(guest) for guest in self._guests]
        self._of = {tally.guest.spec.name: tally for tally in self._tallies}
        self._counts = HostTally(world.host.line)
        self._pressure = 0.0
        self._ticked = -rule.period
        self.recording = _blank(world, rule) if record else None

    @property
    def available(self) -> Sequence[float]:
        return self._counts.available

    def go(self, without: Sequence[float] | None = None) -> Measures:
        """Live through all seconds. without: the host's available memory in the same world without
        a policy; None if this is the run without one."""
        host, counts = self._host, self._counts
        later = [tally for tally in self._tallies if tally.guest.spec.boots > 0]
        running = [tally for tally in self._tallies if tally.guest.spec.boots == 0]
        for second in range(LENGTH):
            if later and any(tally.guest.spec.boots <= second for tally in later):
                running += [tally for tally in later if tally.guest.spec.boots <= second]
                later = [tally for tally in later if tally.guest.spec.boots > second]
            resident = 0.0
            for tally in running:
                guest = tally.guest
                guest.step(second)
                resident += guest.resident
                if guest.is_troubled:
                    tally.trouble(second)
            host.step(second, resident)
            counts.second(host)
            self._pressure += host.some
            if second % self._rule.period == 0:
                self._tick(second, running)
            if second % JAIN_EVERY == 0:
                counts.fairness([tally.guest for tally in running])
            if self.recording is not None:
                self._record(self.recording, second)
        return self._measures(counts.available if without is None else without)

    def _tick(self, second: int, running: Sequence[Tally]) -> None:
        """Let the rule decide, and carry out what it orders."""
        some = min(1.0, self._pressure / (second - self._ticked))
        self._pressure, self._ticked = 0.0, second
        spec = self._world.host
        view = HostView(max(0.0, self._host.available), spec.total, some, spec.line)
        targets, polled = self._rule.tick(
            second, view, [_view(tally.guest, second) for tally in running]
        )
        for name, target in targets.items():
            tally = self._of[name]
            tally.order(target)
            tally.guest.order(second, min(max(target, 0.0), tally.guest.spec.size))
        for tally in running:
            tally.guest.ask(second, tally.guest.spec.name in polled)

    def _measures(self, without: Sequence[float]) -> Measures:
        counts, tallies = self._counts, self._tallies
        honest = [tally for tally in tallies if not tally.guest.spec.claims]
        missing, part = brought(counts.line, without, counts.available)
        calm = [tally for tally in tallies if tally.guest.spec.kind != "saw"]
        jain = counts.jain
        return Measures(
            self._world.scenario,
            self._world.seed,
            self._rule.name,
            host_oom=counts.oom,
            below=counts.below,
            distress=sum(tally.distress for tally in honest),
            guest_oom=sum(tally.starved for tally in honest),
            swap_in=sum(tally.guest.total_swapped_in for tally in honest) / GIB,
            reread=sum(tally.guest.total_reread for tally in honest) / GIB,
            reversals=_hourly(tallies),
            calm_reversals=_hourly(calm),
            moved=sum(tally.guest.moved for tally in tallies) / GIB,
            episodes=tuple(length for tally in honest for length in tally.episodes),
            missing=missing / GIB,
            brought=part / GIB,
            jain=sum(jain) / len(jain) if jain else None,
            host_swap_in=self._host.total_swapped_in / GIB,
            host_stall=counts.stall,
            liars=sum(tally.distress for tally in tallies if tally.guest.spec.claims),
        )

    def _record(self, recording: Recording, second: int) -> None:
        available = self._host.available
        recording.available.append(available)
        recording.k.append(min(1.0, max(0.0, available / recording.reserve)))
        for vm, tally in zip(recording.vms, self._tallies, strict=True):
            guest = tally.guest
            runs = second >= guest.spec.boots
            nothing = float("nan")
            vm.target.append(guest.ordered if runs else nothing)
            vm.actual.append(guest.actual if runs else nothing)
            vm.demand.append(guest.spec.demand[second] if runs else nothing)
            vm.resident.append(guest.resident if runs else nothing)
            if tally.last == second:
                vm.trouble.append(second)


def _hourly(tallies: Sequence[Tally]) -> float:
    """Reversals a VM and hour."""
    return sum(tally.reversals for tally in tallies) / max(1, len(tallies)) * 3600 / LENGTH


def _view(guest: Guest, second: int) -> VmView:
    spec = guest.spec
    return VmView(
        name=spec.name,
        size=spec.size,
        target=guest.ordered,
        actual=min(spec.size, guest.actual + guest.took_back),
        resident=guest.resident,
        sample=guest.sample,
        stats_interval=10,
        weight=spec.weight,
        has_driver=second >= spec.driver,
        pinned=spec.pinned,
    )


def _blank(world: World, rule: Rule) -> Recording:
    total = world.host.total
    return Recording(
        world.scenario,
        world.seed,
        rule.name,
        total,
        reserve=default_reserve(int(total * MIB)) / MIB,
        line=world.host.line,
        vms=[VmRecording(spec.name, spec.size) for spec in world.guests],
    )
