"""One tick after the other: decides about the VMs that answered, orders them, and remembers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vhost_balloon.log.lines import logger
from vhost_balloon.policy.constants import HOLD, REST
from vhost_balloon.policy.decide import HostState, Outcome, decide, judge
from vhost_balloon.policy.inputs import HostFigures, VmFigures
from vhost_balloon.policy.interfaces import Policed, Vms
from vhost_balloon.policy.memory_file import MemoryFile
from vhost_balloon.policy.past import FORGET, Order, Past, Tally, not_carried_out
from vhost_balloon.policy.release import below_ceiling, give_back, withdraw
from vhost_balloon.policy.report import VmReport
from vhost_balloon.policy.settings import Mode, PolicySettings


class Ticks:
    """The ticks so far, and the next. Times are those of the policy's clock."""

    def __init__(self, vms: Vms, file: MemoryFile | None) -> None:
        self._vms = vms
        self._file = file
        self._past: Past | None = None
        """None until it is read."""
        self._looked: Mapping[str, Policed] = {}
        self._outcome: Outcome | None = None
        self._refused: set[str] = set()
        """The VMs that accepted no order since they refused one."""
        self._known: Mapping[str, Policed] = {}
        """By the last look, which may be newer than the last decisions."""
        self._seen_all = self._look_began = float("-inf")
        self.has_rested = False
        """The last look left out VMs that are not squeezed."""
        self.at = 0.0
        """When the last decisions were made."""
        self._release_began: float | None = None
        """When this process began to give all VMs their ceilings by order of the operator."""

    @property
    def is_releasing(self) -> bool:
        """The operator wants every VM at its ceiling."""
        return self._release_began is not None

    @property
    def host(self) -> HostState | None:
        """At the last tick; None before the first."""
        return None if self._outcome is None else self._outcome.host

    def reports(self) -> dict[str, VmReport]:
        """The VMs at the last tick."""
        if self._outcome is None or self._past is None:
            return {}
        found = {}
        for name, decision in self._outcome.decisions.items():
            looked, tally = self._looked[name], self._past.tallies.get(name) or Tally()
            found[name] = VmReport(
                looked.figures, decision, looked.held_for, dict(tally.decisions), tally.reversals
            )
        return found

    def go_on(self, now: float) -> None:
        """Read what an earlier process wrote down, and go on with its release. Later calls do
        nothing."""
        if self._past is None:
            self._recall(now)

    def release(self, now: float) -> None:
        """Begin to give all VMs their ceilings. A restart of the hub does not end it."""
        past, self._release_began = self._recall(now), now
        self._write(now, past, urgent=True)

    def end_release(self, now: float) -> None:
        """The operator wants something else."""
        if self.is_releasing:
            past, self._release_began = self._recall(now), None
            self._write(now, past, urgent=True)

    def stop(self, now: float) -> None:
        """Write down the memory of a policy that decided until now; there is no last tick."""
        if self._past is not None and self._outcome is not None:
            self._write(now, self._past, urgent=True)
        self._outcome = None

    def _write(self, now: float, past: Past, *, urgent: bool) -> None:
        if self._file is not None:
            self._file.write(now, past.memory, urgent=urgent, releasing=self.is_releasing)

    def look_again(self) -> None:
        """Have the next look leave out no VM."""
        self._seen_all = float("-inf")

    async def look(self, now: float, settings: PolicySettings) -> Mapping[str, Policed]:
        """The VMs. Guests are asked for statistics where the last tick wanted it. While the host is
        well, the figures of VMs that answer and are not squeezed stand for REST."""
        self._look_began = now
        decisions = {} if self._outcome is None else self._outcome.decisions
        poll = {name for name, decision in decisions.items() if decision.poll}
        is_well = self.host is not None and not self.host.short and not self.is_releasing
        if not is_well or not 0 <= now - self._seen_all < REST:
            return await self.look_at_all(now, settings, poll)
        self.has_rested = True
        squeezed = {name for name, vm in self._known.items() if vm.figures.squeezed}
        only = squeezed | poll | self._vms.left_out.keys()
        rest = {name: vm for name, vm in self._known.items() if name not in only}
        self._known = rest | dict(await self._vms.look(settings, poll, only))
        return self._known

    async def look_at_all(
        self, now: float, settings: PolicySettings, poll: Collection[str] = ()
    ) -> Mapping[str, Policed]:
        self._seen_all = self._look_began = now
        self.has_rested = False
        self._known = await self._vms.look(settings, poll)
        return self._known

    async def decide(
        self,
        now: float,
        host: HostFigures,
        looked: Mapping[str, Policed],
        settings: PolicySettings,
        mode: Mode,
    ) -> list[Order]:
        """Decide, order, remember. Returns the orders that were accepted."""
        past = self._recall(now)
        vms = figures(looked)
        state = judge(host, settings.reserve_of(host.total))
        outcome = decide(now, state, vms, past.memory)
        was_releasing = self.is_releasing
        self._release(now, outcome, vms, past, mode)
        self._looked, self._outcome, self.at = looked, outcome, now
        refused = await self._order(outcome, is_real=mode is Mode.ON or self.is_releasing)
        orders = _conclude(now, outcome, vms, past, refused)
        held = past.held()
        past.follow(now, outcome.memory)
        past.count(orders)
        self._refused -= {order.vm for order in orders}
        self._refused &= past.memory.keys()
        is_new = past.held() != held or self.is_releasing is not was_releasing
        self._write(now, past, urgent=bool(orders) or is_new)
        return orders

    def _recall(self, now: float) -> Past:
        """The past, which a clock that went back makes worthless."""
        if self._past is None:
            self._past = Past()
            if self._file is not None:
                self._past.restore(self._file.read(now), now)
                self._release_began = now if self._file.releasing else None
        elif now < self.at:
            self._past.forget()
            self._release_began = now if self.is_releasing else None
        return self._past

    def _release(
        self,
        now: float,
        outcome: Outcome,
        vms: Mapping[str, VmFigures],
        past: Past,
        mode: Mode,
    ) -> None:
        """Raise targets by order of the operator; that ends when nothing is left to raise, of VMs
        that do not answer at the moment neither. Those are waited for until they are forgotten."""
        began = self._release_began
        if began is None:
            return
        missed = self._vms.left_out or self._vms.failure
        silent = past.memory.keys() - vms.keys() or (now - began <= FORGET and missed)
        if not below_ceiling(vms) and not silent and self._look_began >= began:
            self._release_began = None
        else:
            if mode is not Mode.ON:
                for name, decision in outcome.decisions.items():
                    before = past.memory.get(name)
                    reason = decision.reason
                    not_carried_out(outcome.memory[name], before, vms[name].target, reason)
                withdraw(outcome.decisions)
            give_back(outcome.host, vms, outcome.decisions)

    async def _order(self, outcome: Outcome, *, is_real: bool) -> Mapping[str, str]:
        """Give the orders. Returns those that no VM follows, and why: "" if they are not real."""
        targets = {
            name: decision.target
            for name, decision in outcome.decisions.items()
            if decision.target is not None
        }
        if not targets or not is_real:
            return dict.fromkeys(targets, "")
        refused = await self._vms.order(targets)
        for name in refused.keys() - self._refused:
            logger.warning("an order was refused: %s", refused[name], extra={"vm": name})
        self._refused |= refused.keys()
        return refused


def _conclude(
    now: float,
    outcome: Outcome,
    vms: Mapping[str, VmFigures],
    past: Past,
    refused: Mapping[str, str],
) -> list[Order]:
    """The orders that were accepted. The new memory follows what really happened: the next tick
    takes any other difference for the guest's doing."""
    orders = []
    for name, decision in outcome.decisions.items():
        memory, before = outcome.memory[name], vms[name].target
        if decision.target is None:
            memory.target = before
        elif name in refused:
            decision.detail = refused[name]
            not_carried_out(memory, past.memory.get(name), before, decision.reason)
            if refused[name]:
                memory.held_until = now + HOLD  # others are asked first
        else:
            memory.target = decision.target
            orders.append(Order(name, decision.reason, before, decision.target))
    return orders


def figures(looked: Mapping[str, Policed]) -> dict[str, VmFigures]:
    return {name: vm.figures for name, vm in looked.items()}
