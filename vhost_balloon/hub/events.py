"""POLICY_DECISION: the orders of a tick, sent if there were any. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocol.qmp import Json, Object
from vhost_balloon.policy.decide import HostState
from vhost_balloon.policy.past import Order

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


def ordered(host: HostState, orders: Sequence[Order]) -> Object:
    """The event's data."""
    largest = sorted(orders, key=lambda order: -abs(order.target - order.before))[:MAX_ORDERS]
    decisions: Json = [
        {
            "id": order.vm,
            "reason": order.reason.value,
            "from": order.before,
            "to": order.target,
        }
        for order in largest
    ]
    left_out = len(orders) - len(largest)
    return {
        "decisions": decisions,
        **({"left-out": left_out} if left_out else {}),
        "short": host.short,
        "k": round(host.k, 4),
    }
