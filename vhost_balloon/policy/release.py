"""Gives memory back to all VMs because the operator asked for it (policy-release --all). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from vhost_balloon.figures.policy_reason import ORDERS, Reason
from vhost_balloon.policy.constants import GIVE, STEP
from vhost_balloon.policy.decide import Decision, HostState, share_out
from vhost_balloon.policy.inputs import VmFigures


def below_ceiling(vms: Mapping[str, VmFigures]) -> dict[str, VmFigures]:
    """The VMs that can be given memory: a driver follows their target, and nobody else sets it.

    Pinned memory keeps a VM from giving, not from being given.
    """
    return {
        name: vm for name, vm in vms.items() if vm.squeezed and vm.obstacle in (None, Reason.PINNED)
    }


def give_back(host: HostState, vms: Mapping[str, VmFigures], told: Mapping[str, Decision]) -> None:
    """Raise squeezed VMs that have no order, while the host has more than its reserve. Writes their
    decisions.

    Those that lack most come first, as many as can get a STEP each: of many that shared, none
    would get one.
    """
    surplus = host.available - host.reserve
    waiting = {name: vm for name, vm in below_ceiling(vms).items() if told[name].target is None}
    first = sorted(waiting, key=lambda name: waiting[name].target - waiting[name].ceiling)
    most = max(int(surplus * GIVE) // STEP, 1)
    if surplus > 0:
        share_out(surplus, {name: waiting[name] for name in first[:most]}, told)


def withdraw(told: Mapping[str, Decision]) -> None:
    """Take back what was decided: the policy is not to move anything itself."""
    for decision in told.values():
        decision.target = None
        if decision.reason in ORDERS:
            decision.reason = Reason.NOT_NEEDED
