"""Says in sentences why a VM was moved or left alone. Pure."""

from __future__ import annotations

from vhost_balloon.policy.decide import Decision, HostState
from vhost_balloon.policy.inputs import VmFigures
from vhost_balloon.policy.settings import Mode
from vhost_balloon.sizes import format_size


def explain_host(host: HostState | None, mode: Mode) -> str:
    """The host's state in sentences."""
    if host is None:
        return "The policy has not looked at the host yet."
    figures = f"{format_size(host.available)} available, reserve {format_size(host.reserve)}"
    return figures


def explain(
    name: str, vm: VmFigures, decision: Decision, host: HostState | None, mode: Mode
) -> str:
    """Why this VM was moved or left alone, in sentences that a person understands."""
    return f"{name}: {decision.reason.value}"
