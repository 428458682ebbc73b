"""Explains why a VM cannot be moved, whatever the rule says. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.figures.refusal import OPERATOR, Refusal
from vhost_balloon.policy.explain.case import CTL, Case, seconds_text


def _off(case: Case) -> str:
    return case.left(
        "the hub's configuration turns the policy off for it",
        f"Set `policy = \"on\"` in its section [vm.'{case.name}'], and reload the hub.",
    )


def _manual(case: Case) -> str:
    end = "" if case.held_for is None else f"in {seconds_text(case.held_for)}, or "
    return case.left(
        "an operator set its target or put it on hold",
        f"The hold ends {end}with `{CTL} policy-release {case.operand}`.",
    )


def _no_driver(case: Case) -> str:
    return case.left(
        "no balloon driver is ready in its guest",
        "Its QEMU does not run, or its guest has not booted yet or lacks the driver "
        "(virtio_balloon in Linux).",
    )


def _inert(case: Case) -> str:
    return case.left(
        "its daemon lost the record of the running VM",
        "Shut the guest down and start its QEMU again.",
    )


def _pinned(case: Case) -> str:
    detail = case.decision.detail
    why = _KEPT.get(detail, f"its memory is not discarded ({detail})")
    more = _REMEDIES.get(detail, f"`{CTL} status {{}}` shows more.").format(case.operand)
    return case.left(f"nothing would come back to the host, because {why}", more)


_KEPT: Final[Mapping[str, str]] = {
    OPERATOR: "an operator paused discarding for it",
    Refusal.PINNED: "a device that is passed through to it uses its memory",
    Refusal.PINS_UNKNOWN: "its daemon cannot see whether a device uses its memory",
    Refusal.POISON: "its guest poisons free pages",
    Refusal.HUGETLB: "its memory is on hugetlbfs",
    Refusal.FILESYSTEM: "its memory is neither on tmpfs nor on hugetlbfs",
    Refusal.NEVER: "its daemon is told never to discard memory",
    Refusal.FOREIGN: "a later version of its daemon wrote its record",
}
"""By the reason for which memory is not discarded."""

_REMEDIES: Final[Mapping[str, str]] = {
    OPERATOR: f"`{CTL} resume {{}}` ends this.",
    Refusal.PINNED: "This lasts as long as the device is there.",
    Refusal.PINS_UNKNOWN: f"`{CTL} status {{}}` says why, and what to do.",
    Refusal.POISON: "Start the guest without page_poison=on.",
    Refusal.HUGETLB: "Its daemon's option --discard-hugetlb allows it.",
    Refusal.FILESYSTEM: "Its daemon's option --discard-other-filesystems allows it.",
    Refusal.NEVER: "Its daemon's setting `discard` changes this.",
    Refusal.FOREIGN: "Run the later version again, or start the VM's QEMU again.",
}
"""What to do about it; {} is the VM."""


OBSTACLES: Final[Mapping[Reason, Callable[[Case], str]]] = {
    Reason.OFF: _off,
    Reason.MANUAL: _manual,
    Reason.NO_DRIVER: _no_driver,
    Reason.INERT: _inert,
    Reason.PINNED: _pinned,
}
