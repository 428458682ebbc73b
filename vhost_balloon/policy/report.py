"""Makes the document of query-policy (figures/policy_info.py): the host, every VM's reason, and the
numbers behind it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protocol.qmp import Json, Object
from vhost_balloon.figures.policy_reason import ORDERS, Reason
from vhost_balloon.policy.decide import Decision, HostState
from vhost_balloon.policy.explain.host import explain_host
from vhost_balloon.policy.explain.vm import explain, explain_unanswered
from vhost_balloon.policy.inputs import VmFigures
from vhost_balloon.policy.settings import Mode


@dataclass(frozen=True, slots=True)
class VmReport:
    """A VM at the last tick. held_for: seconds until the end of a manual hold, None for no end or
    no hold. decisions: orders given, by reason; reversals: those against the direction of the one
    before."""

    figures: VmFigures
    decision: Decision
    held_for: float | None = None
    decisions: Mapping[Reason, int] = field(default_factory=dict)
    reversals: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The policy's state. mode: in force; configured: by the configuration. readable: the host's
    memory can be read. problems: lines for the operator. host: at the last tick, age seconds ago;
    None before the first. unanswered: why the daemons of other VMs gave no figures. releasing:
    memory goes back to all VMs by order, in any mode."""

    mode: Mode = Mode.OFF
    configured: Mode = Mode.OFF
    readable: bool = True
    problems: Sequence[str] = ()
    host: HostState | None = None
    age: float = 0.0
    vms: Mapping[str, VmReport] = field(default_factory=dict)
    unanswered: Mapping[str, str] = field(default_factory=dict)
    releasing: bool = False


def describe(report: Report) -> Object:
    """The document; its members are those of POLICY_INFO."""
    rows = {name: _unanswered(name, why) for name, why in report.unanswered.items()}
    rows |= {name: _vm(name, vm, report) for name, vm in report.vms.items()}
    document: dict[str, Json] = {
        "mode": report.mode.value,
        "configured-mode": report.configured.value,
        "host-readable": report.readable,
        "problems": list(report.problems),
        "explanation": explain_host(
            report.host, report.mode, readable=report.readable, releasing=report.releasing
        ),
        "vms": [rows[name] for name in sorted(rows)],
    }
    if report.host is not None:
        document["host"] = _host(report.host, report.age)
    return document


def _host(host: HostState, age: float) -> Json:
    return {
        "age": round(age, 3),
        "available": max(host.available, 0),
        "total": host.total,
        "reserve": host.reserve,
        "some": round(host.some, 4),
        "k": round(host.k, 4),
        "short": host.short,
        "plenty": host.plenty,
        "spare": host.spare,
    }


def _unanswered(name: str, why: str) -> Json:
    return {
        "id": name,
        "reason": Reason.STALE.value,
        "detail": why,
        "explanation": explain_unanswered(name, why),
    }


def _vm(name: str, vm: VmReport, report: Report) -> Json:
    figures, decision = vm.figures, vm.decision
    text = explain(
        name, figures, decision, report.host, report.mode, vm.held_for, releasing=report.releasing
    )
    document: dict[str, Json] = {
        "id": name,
        "reason": decision.reason.value,
        "detail": decision.detail,
        "explanation": text,
        "size": figures.size,
        "actual": figures.actual,
        "target": figures.target,
        "resident": figures.resident,
        "floor": figures.floor,
        "ceiling": figures.ceiling,
        "weight": figures.settings.weight,
        "demand": decision.demand,
        "peak": decision.peak,
        "slack": decision.slack,
        "keep": decision.keep,
        "spare": decision.spare,
        "distress": decision.distress,
        "decisions": {reason.value: vm.decisions.get(reason, 0) for reason in ORDERS},
        "reversals": vm.reversals,
    }
    for key, value in (
        ("order", decision.target),
        ("age", decision.age),
        ("held-for", vm.held_for),
    ):
        if value is not None:
            document[key] = value
    return document
