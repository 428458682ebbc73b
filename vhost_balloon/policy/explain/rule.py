"""Explains orders, and why the rule left a VM alone. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import HOLD, SILENT, STALE, STEP, STUCK, TICK
from vhost_balloon.policy.explain.case import CTL, Case, seconds_text
from vhost_balloon.sizes import format_size


def _reclaim(case: Case) -> str:
    why = f"because the host has {case.available}, less than its reserve of {case.reserve}"
    given = format_size(max(case.occupied - (case.decision.target or 0), 0))
    gives = f"Of the {format_size(case.occupied)} that it occupies on the host, it gives {given}."
    return f"{case.asked('asked to shrink', why)} {case.keeps} {gives}"


def _relief(case: Case) -> str:
    text = f"{case.asked('raised', 'because it needs more')} {case.need}"
    if case.decision.target == case.vm.ceiling:
        return f"{text} This is its ceiling."
    slack = format_size(case.decision.slack)
    return f"{text} The host is short, so it gets its slack of {slack} on top of what it has."


def _silent(case: Case) -> str:
    if case.decision.age is None:
        why = "because it is below its ceiling and its guest has sent no statistics"
        return f"{case.asked('raised', why)} This is its ceiling."
    why = f"because it is below its ceiling and its guest has sent no statistics for {case.age}"
    return (
        f"{case.asked('raised', why)} A guest that is short of memory often does not answer. "
        f"It used up to {format_size(case.decision.peak)} lately. Slack comes on top, more the "
        "longer it is silent."
    )


def _regrow(case: Case) -> str:
    than = "twice its reserve of" if case.host.plenty else "its reserve of"
    why = f"because the host has {case.available}, more than {than} {case.reserve}"
    if case.decision.target == case.vm.ceiling:
        return f"{case.asked('raised', why)} This is its ceiling."
    ceiling = format_size(case.vm.ceiling)
    return f"{case.asked('raised', why)} More follows in steps, up to its ceiling of {ceiling}."


def _stuck(case: Case) -> str:
    target = format_size(case.vm.target)
    why = f"because its guest came no closer to {target} for {seconds_text(STUCK)}"
    return (
        f"{case.asked('set back', why)} It is not asked for memory for {seconds_text(HOLD)}. "
        f"`{CTL} status {case.operand}` shows the guest's state. If this happens again, raise "
        "its floor."
    )


def _no_statistics(case: Case) -> str:
    return case.left(
        "its guest has not said how much memory it has available",
        f"`{CTL} stats {case.operand}` asks it; its balloon driver must send statistics.",
    )


def _stale(case: Case) -> str:
    if (case.decision.age or 0) <= (SILENT if case.vm.squeezed else STALE):
        return case.left("its guest has sent no statistics since the policy was started")
    return case.left(
        f"its guest's last statistics are {case.age} old",
        f"While the host is short, it is asked again every {seconds_text(TICK)}.",
        f"If this lasts, `{CTL} stats {case.operand}` shows whether it answers.",
    )


def _distress(case: Case) -> str:
    if case.vm.squeezed:
        more = "It is considered again at its next statistics."
    else:
        helps = "a larger VM" if case.vm.ceiling >= case.vm.size else "a higher ceiling"
        more = f"It has all that it may have, {format_size(case.vm.target)}: only {helps} helps."
    return case.left("its guest is short of memory", case.need, more)


def _moving(case: Case) -> str:
    actual, target = format_size(case.vm.actual), format_size(case.vm.target)
    text = case.left(f"its guest is on its way from {actual} to {target}")
    if case.vm.target == case.vm.ceiling:
        return f"{text} If it never gets there, `{CTL} status {case.operand}` shows its state."
    return text


def _held(case: Case) -> str:
    return case.left(
        "its guest did not reach a target lately, or its daemon did not carry out an order, so it "
        f"is not asked for memory for up to {seconds_text(HOLD)} ({case.name} still gets more if "
        "it needs it)",
        "If this happens again, raise its floor, or see its daemon's log.",
    )


def _nothing_to_spare(case: Case) -> str:
    occupies = f"It occupies {format_size(case.occupied)} on the host."
    text = case.left("it has nothing to spare", case.keeps, occupies)
    return text + case.held_back


def _not_needed(case: Case) -> str:
    why = f"the host has {case.available}, no less than its reserve of {case.reserve}"
    could = f"It could spare {format_size(case.decision.spare)}."
    return case.left(why, could) + case.held_back


def _too_small(case: Case) -> str:
    step = format_size(STEP)
    if case.host.short:
        spare = format_size(case.decision.spare)
        return case.left(
            f"its share of what the host lacks is below {step}", f"It could spare {spare}."
        )
    return case.left(
        f"its share of what the host can give back is below {step}",
        "Those that lack most come first. It gets more as soon as it needs it.",
    )


RULE: Final[Mapping[Reason, Callable[[Case], str]]] = {
    Reason.RELIEF: _relief,
    Reason.SILENT: _silent,
    Reason.RECLAIM: _reclaim,
    Reason.REGROW: _regrow,
    Reason.STUCK: _stuck,
    Reason.NO_STATISTICS: _no_statistics,
    Reason.STALE: _stale,
    Reason.DISTRESS: _distress,
    Reason.MOVING: _moving,
    Reason.HELD: _held,
    Reason.NOTHING_TO_SPARE: _nothing_to_spare,
    Reason.NOT_NEEDED: _not_needed,
    Reason.TOO_SMALL: _too_small,
}
