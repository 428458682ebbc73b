"""Documents of query-policy, made by the policy itself."""

from __future__ import annotations

from typing import Any, Final

from protocol.qmp import Object
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.decide import decide, judge
from vhost_balloon.policy.inputs import HostFigures, Sample, VmFigures
from vhost_balloon.policy.report import Report, VmReport, describe
from vhost_balloon.policy.settings import Mode

GIB: Final = 1 << 30
POLICY_MODES: Final = tuple(mode.value for mode in Mode)


def policed() -> Report:
    """A short host of 16 GiB: web1 is asked for memory, db1 is held, and build is in need."""
    vms = {
        "web1": VmFigures("1", 4 * GIB, 4 * GIB, 4 * GIB, 4 * GIB,
                          Sample(9.5, 4 * GIB, 3 * GIB, 0)),
        "db1": VmFigures("2", 8 * GIB, 6 * GIB, 6 * GIB, 5 * GIB, Sample(4.0, 6 * GIB, GIB, 7),
                         obstacle=Reason.MANUAL),
        "build": VmFigures("3", 4 * GIB, 2 * GIB, 2 * GIB, 2 * GIB, Sample(9.0, 2 * GIB, 0, 0)),
    }  # fmt: skip
    outcome = decide(10.0, judge(HostFigures(GIB, 16 * GIB, 0.02), 2 * GIB), vms, {})
    return Report(
        Mode.ON,
        Mode.ON,
        host=outcome.host,
        age=1.25,
        vms={
            name: VmReport(
                vms[name],
                decision,
                held_for=42.0 if name == "db1" else None,
                decisions={Reason.RECLAIM: 3},
                reversals=1,
            )
            for name, decision in outcome.decisions.items()
        },
        unanswered={"hung1": "no answer within 1 s"},
    )


POLICY_ON: Final[Any] = describe(policed())
POLICY_OFF: Final[Object] = describe(Report())
