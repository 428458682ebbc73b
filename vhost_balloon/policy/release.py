"""Gives memory back to all VMs because the operator asked for it (policy-release --all). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vhost_balloon.figures.policy_reason import ORDERS, Reason
from vhost_balloon.policy.decide import Decision, HostState, share_out
from vhost_balloon.policy.inputs import VmFigures


@dataclass(frozen=True, slots=True)
class Released:
    """What an order to give back memory to all VMs found. left: the VMs below their ceilings.
    failed: why VMs did not get the order: they gave no figures, or keep their holds."""

    left: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


def below_ceiling(vms: Mapping[str, VmFigures]) -> dict[str, VmFigures]:
    """The VMs that can be given memory."""
    return {name: vm for name, vm in vms.items() if vm.squeezed and vm.may_be_given}


def give_back(host: HostState, vms: Mapping[str, VmFigures], told: Mapping[str, Decision]) -> None:
    """Raise squeezed VMs that have no order, while the host has more than its reserve. Writes their
    decisions."""
    if host.available > host.reserve:
        share_out(host.available - host.reserve, vms, told)


def withdraw(told: Mapping[str, Decision]) -> None:
    """Take back what was decided: the policy is not to move anything itself."""
    for decision in told.values():
        decision.target = None
        if decision.reason in ORDERS:
            decision.reason = Reason.NOT_NEEDED
