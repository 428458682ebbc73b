"""Explains a VM's reason. Pure."""

from __future__ import annotations

from typing import Final

from vhost_balloon.name_text import shown
from vhost_balloon.policy.decide import Decision, HostState
from vhost_balloon.policy.explain.case import Case
from vhost_balloon.policy.explain.host import NOT_YET
from vhost_balloon.policy.explain.obstacle import OBSTACLES
from vhost_balloon.policy.explain.rule import RULE
from vhost_balloon.policy.inputs import VmFigures
from vhost_balloon.policy.settings import Mode

_TELL: Final = {**RULE, **OBSTACLES}


def explain(
    name: str,
    vm: VmFigures,
    decision: Decision,
    host: HostState | None,
    mode: Mode,
    held_for: float | None = None,
    *,
    releasing: bool = False,
) -> str:
    """Why this VM was moved or left alone, in sentences that a person understands.

    held_for: seconds until the end of a manual hold, None for no end or no hold. releasing: memory
    goes back to all VMs by order, in any mode.
    """
    if host is None:
        return NOT_YET
    is_real = releasing and decision.target is not None
    case = Case(shown(name), vm, decision, host, Mode.ON if is_real else mode, held_for)
    if decision.target is not None and decision.detail:
        return case.failed
    if releasing and case.mode is not Mode.ON and decision.reason in RULE:
        return case.withheld
    return _TELL[decision.reason](case)


def explain_unanswered(name: str, why: str) -> str:
    """Why a VM without figures is left alone."""
    return (
        f"{shown(name)} is left alone: its daemon gives the policy no figures ({why}). Its target "
        "stays as it is until the daemon answers."
    )
