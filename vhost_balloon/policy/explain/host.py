"""Explains the state of the host. Pure."""

from __future__ import annotations

from typing import Final

from vhost_balloon.policy.constants import PRESSURE
from vhost_balloon.policy.decide import HostState
from vhost_balloon.policy.explain.case import CTL
from vhost_balloon.policy.settings import Mode
from vhost_balloon.sizes import format_size

NOT_YET: Final = (
    "The policy decides nothing at present. The notes say why; without a note, it has just started."
)


_RELEASE: Final = (
    f"Memory goes back to all VMs by order (`{CTL} policy-release --all`), while the host has more "
    "than its reserve."
)


def explain_host(
    host: HostState | None, mode: Mode, *, readable: bool = True, releasing: bool = False
) -> str:
    """The host's state in sentences. readable: whether its memory can be read. releasing: memory
    goes back to all VMs by order, in any mode."""
    if mode is Mode.OFF and not releasing:
        return (
            f"The policy is off and moves no VM. `{CTL} policy-mode dry-run` shows what it would "
            f"do. `{CTL} policy-mode on` turns it on until the hub restarts, and "
            '`mode = "on"` in [policy] of the hub\'s configuration does for good.'
        )
    if not readable:
        text = "The host's memory cannot be read, so no VM is moved, not even one that needs more."
        if host is None:
            return text
        return f"{text} The figures and reasons are those of the last decision."
    if host is None:
        return NOT_YET
    sentences = [_available(host)]
    if releasing:
        sentences.append(_RELEASE)
    if releasing and mode is not Mode.ON:
        state = "is off" if mode is Mode.OFF else "makes a dry run"
        sentences.append(f"Nothing else is ordered: the policy {state}.")
        return " ".join(sentences)
    if host.short:
        sentences += _shortage(host)
    elif releasing:
        pass  # the order says what is given
    elif host.plenty:
        sentences.append("VMs below their ceilings get memory back in small steps.")
    else:
        sentences.append("Nothing is taken or given back, except to a VM that needs more.")
    if mode is Mode.DRY_RUN:
        sentences.append(
            "This is a dry run: nothing is ordered, so the policy repeats its first step."
        )
    return " ".join(sentences)


def _available(host: HostState) -> str:
    available, reserve = format_size(max(host.available, 0)), format_size(host.reserve)
    if host.short:
        compared = f"less than its reserve of {reserve}"
    elif host.plenty:
        compared = f"more than twice its reserve of {reserve}"
    else:
        compared = f"between its reserve of {reserve} and twice as much"
    text = f"The host has {available} of {format_size(host.total)} available, {compared}."
    if host.some >= PRESSURE and host.short:
        text += (
            f" Tasks waited for memory in {host.some:.0%} of the time, so no more than this counts "
            "as available."
        )
    return text


def _shortage(host: HostState) -> list[str]:
    missing = format_size(host.reserve - host.available)
    share = (
        f"Beyond what its guest uses, each VM may keep {host.k:.0%} of what it would like "
        f"(k = {host.k:.2f})."
    )
    if host.spare:
        return [share, f"{missing} are missing, and VMs can spare {format_size(host.spare)}."]
    return [
        share,
        f"{missing} are missing, and no VM can be asked for more at present.",
        "The VMs' reasons say why.",
        "If this lasts, shut a VM down, or lower the reserve or the VMs' floors.",
    ]
