"""The policy's lines for the operator: what a tick ordered, and settings that cannot work. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.decide import HostState
from vhost_balloon.policy.inputs import VmFigures
from vhost_balloon.policy.past import Order
from vhost_balloon.policy.settings import Mode, PolicySettings
from vhost_balloon.sizes import format_size

MAX_NAMED: Final = 10
"""VMs that a line names."""


def tick_line(host: HostState, mode: Mode, orders: Sequence[Order]) -> str:
    """One line for all orders of a tick."""
    state = "short of memory" if host.short else "not short of memory"
    numbers = (
        f"{format_size(host.available)} available, reserve {format_size(host.reserve)}, "
        f"k {host.k:.2f}"
    )
    named = [
        f"{order.vm} {format_size(order.before)} -> {format_size(order.target)} "
        f"({order.reason.value})"
        for order in orders[:MAX_NAMED]
    ]
    if len(orders) > MAX_NAMED:
        named.append(f"and {len(orders) - MAX_NAMED} more")
    what = ", ".join(named) or ("no orders: dry-run" if mode is Mode.DRY_RUN else "no orders")
    return f"policy: the host is {state}: {numbers}: {what}"


def mistakes(settings: PolicySettings, total: int, vms: Mapping[str, VmFigures]) -> list[str]:
    """Settings that this host and these VMs cannot have. total: the host's memory."""
    found = []
    wanted, used = settings.wanted_reserve(total), settings.reserve_of(total)
    if wanted > used:
        found.append(
            f"the policy's reserve of {format_size(wanted)} is more than half of the host's "
            f"{format_size(total)}: {format_size(used)} is used"
        )
    floors = sum(vm.floor for vm in vms.values() if vm.obstacle is not Reason.OFF)
    if floors > total:
        found.append(
            f"the VMs' floors add up to more than the host's {format_size(total)}: the policy "
            "cannot keep its reserve"
        )
    return found
