"""Reads what the policy has to know of a VM from its daemon's answer to query-vms. Pure.

The daemon may have been taken over by its guest. Whatever it says is checked, and concerns that VM
alone; its name and its settings come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from vhost_balloon.checked import Document, flag, number, reading, real
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.figures.refusal import INERT, PAUSE_REASONS, Refusal
from vhost_balloon.policy.inputs import Sample, VmFigures, VmSettings
from vhost_balloon.policy.interfaces import Policed

MAX_SIZE: Final = (1 << 63) - 1
"""The largest of QMP's integers."""

_KEEPING: Final = {
    "hugetlb": ("discard-hugetlb", Refusal.HUGETLB),
    "other": ("discard-other-filesystems", Refusal.FILESYSTEM),
}
"""What backs a region that is not discarded by default: the setting that changes that, and the
detail for the operator."""


def read_policed(answer: object, identity: str, settings: VmSettings, now: float) -> Policed:
    """The VM in an answer that was complete at now. identity: its socket's, which a new daemon
    changes. settings: the operator's; without a ceiling, it is the target that the VM starts with.

    Raises StateError.
    """
    with reading("its answer"):
        if not isinstance(answer, list) or len(answer) != 1 or not isinstance(answer[0], dict):
            raise ValueError("not a list of one VM")
        return _policed(answer[0], identity, settings, now)


def _policed(vm: Document, identity: str, settings: VmSettings, now: float) -> Policed:
    own = _object(vm, "settings")
    if settings.ceiling is None:
        settings = replace(settings, ceiling=_size(own, "target"))
    sizes = {name: _size(vm, name) for name in ("guest-memory", "target", "actual", "resident")}
    held = flag(vm.get("held", False))
    held_for = _time(vm, "held-for") if held else None
    is_known = bool(sizes["guest-memory"]) and None not in sizes.values()
    obstacle, detail = _obstacle(vm, own, settings, held=held, is_known=is_known)
    figures = VmFigures(
        guest=f"{identity}:{number(vm.get('front-end-pid', 0), high=MAX_SIZE)}",
        size=sizes["guest-memory"] or 0,
        actual=sizes["actual"] or 0,
        target=sizes["target"] or 0,
        resident=sizes["resident"] or 0,
        sample=_sample(vm, now),
        settings=settings,
        obstacle=obstacle,
        detail=detail,
    )
    return Policed(figures, held, held_for)


def _obstacle(
    vm: Document, own: Mapping[str, Any], settings: VmSettings, *, held: bool, is_known: bool
) -> tuple[Reason | None, str]:
    """Why the VM cannot be moved, the first that holds, with its detail."""
    is_inert = vm["state"] == INERT
    keeps = _keeps(vm, own)
    if not settings.on:
        return Reason.OFF, ""
    if held:
        return Reason.MANUAL, ""
    # A front end that is only answered has no driver: inert says more.
    if not flag(vm["attached"]) or (not is_inert and not (flag(vm["driver-ready"]) and is_known)):
        return Reason.NO_DRIVER, ""
    if is_inert:
        return Reason.INERT, ""
    return (Reason.PINNED, keeps) if keeps else (None, "")


def _keeps(vm: Document, own: Mapping[str, Any]) -> str:
    """Why the host would not get back memory that the guest gives; "" if it would.

    A spent limit of reports and a guest that poisons its free pages keep reported memory only.
    """
    given = _list(vm, "pause-reasons")
    for reason in PAUSE_REASONS:
        if reason in given and reason not in (Refusal.RATE, Refusal.POISON):
            return reason
    for region in _list(vm, "regions"):
        setting, detail = _KEEPING.get(region["backing"], ("", ""))
        if setting and not flag(own.get(setting, False)):
            return detail
    return ""


def _sample(vm: Document, now: float) -> Sample | None:
    """The guest's last statistics; None without what the policy needs of them."""
    statistics = _object(vm, "stats")
    taken, actual = _time(vm, "stats-taken"), _size(vm, "stats-actual")
    available = _size(statistics, "stat-available-memory")
    if taken is None or actual is None or available is None:
        return None
    return Sample(min(taken, now), actual, available, _size(statistics, "stat-major-faults"))


def _size(document: Mapping[str, Any], name: str) -> int | None:
    """An optional member."""
    return number(document[name], high=MAX_SIZE) if name in document else None


def _time(document: Mapping[str, Any], name: str) -> float | None:
    """An optional member, in seconds."""
    if name not in document:
        return None
    seconds = real(document[name])
    if not 0 <= seconds <= MAX_SIZE:
        raise ValueError(f"{name!r} is not a time")
    return seconds


def _object(document: Document, name: str) -> Mapping[str, Any]:
    """An optional member; empty if it is missing."""
    value = document.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name!r} is not an object")
    return value


def _list(document: Document, name: str) -> list[Any]:
    """An optional member; empty if it is missing."""
    value = document.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"{name!r} is not an array")
    return value
