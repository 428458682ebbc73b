"""A hub's answers about its policy, made as the real one makes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.fakes.daemons import Serve, answering, returned
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.decide import Decision, judge
from vhost_balloon.policy.inputs import HostFigures, Sample, VmFigures
from vhost_balloon.policy.report import Report, VmReport, describe
from vhost_balloon.policy.settings import Mode

MIB, GIB = 1 << 20, 1 << 30
WEB1 = VmReport(
    VmFigures("qemu", 4 * GIB, 4 * GIB, 4 * GIB, 3584 * MIB, Sample(0.0, 4 * GIB, 3 * GIB)),
    Decision(
        Reason.RECLAIM, 3 * GIB, demand=GIB, peak=1536 * MIB, slack=819 * MIB,
        keep=1685 * MIB, spare=1899 * MIB, age=1.2,
    ),
    decisions={Reason.RECLAIM: 3, Reason.RELIEF: 1},
    reversals=2,
)  # fmt: skip
DB1 = VmReport(
    VmFigures("qemu", 8 * GIB, 6 * GIB, 6 * GIB, 6 * GIB, None),
    Decision(Reason.MANUAL, demand=5 * GIB, peak=5 * GIB, slack=2 * GIB, keep=6 * GIB),
    held_for=42.0,
)
PAUSED = VmReport(WEB1.figures, Decision(Reason.PINNED, detail="operator", age=7.0))
VMS = {"db1": DB1, "old": PAUSED, "web1": WEB1}


def document(
    mode: Mode = Mode.ON, *, available: int = 1126 * MIB, age: float = 0.4, **members: Any
) -> Any:
    """Return the answer to query-policy of a host of 16 GiB with a reserve of 2.3 GiB."""
    host = judge(HostFigures(available, 16 * GIB, 0.02), 2355 * MIB)
    known: dict[str, Any] = {
        "configured": mode,
        "host": replace(host, spare=1899 * MIB),
        "vms": VMS,
        "age": age,
    }
    if mode is Mode.OFF:
        known = {"configured": mode}
    return describe(Report(mode, **(known | members)))


def hub(answer: Any = None, **answers: bytes) -> Serve:
    """Return a hub with this answer to query-policy, and others by command."""
    known = {name.replace("_", "-"): value for name, value in answers.items()}
    policy = document() if answer is None else answer
    return answering({"query-policy": returned(policy), **known})
