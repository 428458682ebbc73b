"""What query-policy returns: the members of PolicyInfo, each with its QMP type. Pure.

policy/report.py fills them in, the hub publishes them, metrics and the event are made from the same
document. "*" marks a member that is left out while it is not known. Sizes are in bytes, times in
seconds.

mode: the one in force; configured-mode: that of the configuration. host-readable: whether its
memory can be read, without which nothing is decided. problems: lines for the operator. A VM whose
daemon does not answer has the reason "stale", with its detail, and no figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vhost_balloon.figures.policy_reason import ORDERS

POLICY_INFO: Final[Mapping[str, str]] = {
    "mode": "PolicyMode",
    "configured-mode": "PolicyMode",
    "host-readable": "bool",
    "problems": "[str]",
    "explanation": "str",
    "*host": "PolicyHost",
    "vms": "[PolicyVm]",
}

PARTS: Final[Mapping[str, Mapping[str, str]]] = {
    "PolicyHost": {
        "age": "number",
        "available": "int",
        "total": "int",
        "reserve": "int",
        "some": "number",
        "k": "number",
        "short": "bool",
        "plenty": "bool",
        "spare": "int",
    },
    "PolicyVm": {
        "id": "str",
        "reason": "PolicyReason",
        "detail": "str",
        "explanation": "str",
        "*size": "int",
        "*actual": "int",
        "*target": "int",
        "*order": "int",
        "*resident": "int",
        "*floor": "int",
        "*ceiling": "int",
        "*weight": "int",
        "*demand": "int",
        "*peak": "int",
        "*slack": "int",
        "*keep": "int",
        "*spare": "int",
        "*age": "number",
        "*distress": "bool",
        "*held-for": "number",
        "*decisions": "PolicyDecisions",
        "*reversals": "int",
    },
    "PolicyDecisions": {reason.value: "int" for reason in ORDERS},
}
