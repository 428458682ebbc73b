"""POLICY_DECISION: the orders of a tick, sent if there were any. Pure."""

from __future__ import annotations

from typing import Final

from protocol.qmp import Json, Object
from vhost_balloon.policy.report import Report
from vhost_balloon.policy.settings import Mode

EVENT: Final = "POLICY_DECISION"
MAX_ORDERS: Final = 100
"""In one event: the largest changes. left-out counts the others."""

ORDER: Final = {"id": "str", "reason": "PolicyReason", "from": "int", "to": "int"}
ORDERED: Final = {
    "decisions": "[PolicyOrder]",
    "*left-out": "int",
    "short": "bool",
    "k": "number",
}
"""Members and their types, as in figures/policy_info.py. Sizes are in bytes."""


def ordered(report: Report) -> Object | None:
    """The event's data; None if nothing was ordered at the last tick."""
    given = [
        (name, vm.decision.reason, vm.figures.target, vm.decision.target)
        for name, vm in sorted(report.vms.items())
        if vm.decision.target is not None
    ]
    if report.mode is not Mode.ON or report.host is None or not given:
        return None
    given.sort(key=lambda order: -abs(order[3] - order[2]))
    decisions: Json = [
        {"id": name, "reason": reason.value, "from": before, "to": after}
        for name, reason, before, after in given[:MAX_ORDERS]
    ]
    left_out = len(given) - MAX_ORDERS
    return {
        "decisions": decisions,
        **({"left-out": left_out} if left_out > 0 else {}),
        "short": report.host.short,
        "k": round(report.host.k, 4),
    }
