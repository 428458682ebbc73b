"""What an operator may choose for the VM, and the one reader of it.

The command line has the choices as options. Configuration files and state records have them as a
mapping, its keys spelled as the options; there a feature is switched by true or false.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from protocol.qmp import Json
from protocol.virtio_balloon import BalloonFeature
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.service.listeners import SocketOptions

MAX_STATS_INTERVAL: Final = 86400.0
MAX_TARGET: Final = (1 << 63) - 1
MAX_REPORT_RATE: Final = (1 << 63) - 1
"""Bytes, and bytes a second: the largest of QMP's integers."""

SWITCHES: Final = {
    "must-tell-host": (BalloonFeature.MUST_TELL_HOST, "the guest must ask to take pages back"),
    "stats": (BalloonFeature.STATS_VQ, "guest memory statistics"),
    "deflate-on-oom": (
        BalloonFeature.DEFLATE_ON_OOM,
        "deflation when the guest is out of memory",
    ),
    "free-page-hint": (BalloonFeature.FREE_PAGE_HINT, "free page hints (never acted on)"),
    "page-poison": (BalloonFeature.PAGE_POISON, "the guest's page poison value"),
    "reporting": (BalloonFeature.PAGE_REPORTING, "free page reporting"),
}
"""Feature switches: --no-NAME takes the bit from what is offered to the guest."""

ALL_FEATURES: Final = sum(int(bit) for bit, _ in SWITCHES.values())


@dataclass(frozen=True, slots=True)
class VmSettings:
    """What the operator chose for the VM.

    offered: balloon feature bits. stats_interval: seconds, 0 for on demand only. target: bytes
    that the guest is to keep from its front end's start on, None for all. access: of its socket.
    report_rate: bytes a second that the guest's reports may have discarded, None for all.
    """

    offered: int = ALL_FEATURES
    policy: DiscardPolicy = field(default_factory=DiscardPolicy)
    stats_interval: float = 10.0
    target: int | None = None
    access: SocketOptions = field(default_factory=SocketOptions)
    report_rate: int | None = None


class SettingError(ValueError):
    """A value that key cannot have; text says what it expects."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"'{key}' {text}")
        self.key: Final = key
        self.text: Final = text


def settings_to_json(settings: VmSettings) -> dict[str, Json]:
    """All settings by key; what has no value is left out."""
    values: dict[str, Json] = {
        name: bool(settings.offered & bit) for name, (bit, _) in SWITCHES.items()
    }
    values |= {
        "discard": settings.policy.mode.value,
        "discard-hugetlb": settings.policy.hugetlb,
        "discard-other-filesystems": settings.policy.other_filesystems,
        "stats-interval": settings.stats_interval,
        "target": settings.target,
        "report-rate": settings.report_rate,
        "socket-mode": f"{settings.access.mode:04o}",
        "socket-group": settings.access.group,
    }
    return {key: value for key, value in values.items() if value is not None}


def settings_from_json(values: Mapping[str, object], base: VmSettings) -> VmSettings:
    """base with the values that are given. Raises SettingError."""
    settings = base
    for key, value in values.items():
        if key not in _READERS:
            raise SettingError(key, "is not known")
        settings = _READERS[key](settings, key, value)
    return settings


def read_mode(text: str) -> int:
    """Permission bits, in octal. Raises ValueError."""
    if not re.fullmatch("[0-7]{1,6}", text) or int(text, 8) > 0o777:
        raise ValueError(f"{text!r} is no octal mode such as 0660")
    return int(text, 8)


def is_file_name_text(text: str) -> bool:
    """Whether the system's calls take this text as a path, or as a name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


_Reader = Callable[[VmSettings, str, object], VmSettings]


def _switch(settings: VmSettings, key: str, value: object) -> VmSettings:
    bit = int(SWITCHES[key][0])
    offered = settings.offered & ~bit
    return replace(settings, offered=offered | bit if _boolean(key, value) else offered)


def _discard(settings: VmSettings, key: str, value: object) -> VmSettings:
    modes = {mode.value: mode for mode in DiscardMode}
    if not isinstance(value, str) or value not in modes:
        raise SettingError(key, f"expects one of {', '.join(modes)}")
    return replace(settings, policy=replace(settings.policy, mode=modes[value]))


def _hugetlb(settings: VmSettings, key: str, value: object) -> VmSettings:
    return replace(settings, policy=replace(settings.policy, hugetlb=_boolean(key, value)))


def _other_filesystems(settings: VmSettings, key: str, value: object) -> VmSettings:
    policy = replace(settings.policy, other_filesystems=_boolean(key, value))
    return replace(settings, policy=policy)


def _stats_interval(settings: VmSettings, key: str, value: object) -> VmSettings:
    if isinstance(value, bool) or not isinstance(value, int | float):
        value = math.nan
    if not 0 <= value <= MAX_STATS_INTERVAL:
        text = f"expects a number of seconds from 0 to {MAX_STATS_INTERVAL:.0f}"
        raise SettingError(key, text)
    return replace(settings, stats_interval=float(value))


def _target(settings: VmSettings, key: str, value: object) -> VmSettings:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_TARGET:
        raise SettingError(key, "expects a size above 0, in bytes")
    return replace(settings, target=value)


def _report_rate(settings: VmSettings, key: str, value: object) -> VmSettings:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_REPORT_RATE:
        raise SettingError(key, "expects a number of bytes a second above 0")
    return replace(settings, report_rate=value)


def _socket_mode(settings: VmSettings, key: str, value: object) -> VmSettings:
    try:
        mode = read_mode(value) if isinstance(value, str) else None
    except ValueError:
        mode = None
    if mode is None:
        raise SettingError(key, "expects a string of octal digits such as 0660")
    return replace(settings, access=replace(settings.access, mode=mode))


def _socket_group(settings: VmSettings, key: str, value: object) -> VmSettings:
    if not isinstance(value, str) or not is_file_name_text(value):
        raise SettingError(key, "expects a group's name or number, as a string")
    return replace(settings, access=replace(settings.access, group=value))


def _boolean(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingError(key, "expects true or false")
    return value


_READERS: Final[Mapping[str, _Reader]] = {
    **dict.fromkeys(SWITCHES, _switch),
    "discard": _discard,
    "discard-hugetlb": _hugetlb,
    "discard-other-filesystems": _other_filesystems,
    "stats-interval": _stats_interval,
    "target": _target,
    "report-rate": _report_rate,
    "socket-mode": _socket_mode,
    "socket-group": _socket_group,
}

SETTINGS: Final = tuple(_READERS)
"""All keys."""


def changed_settings(old: VmSettings, new: VmSettings) -> list[str]:
    """Keys of the settings that differ, in the order of SETTINGS."""
    before, after = settings_to_json(old), settings_to_json(new)
    return [key for key in SETTINGS if before.get(key) != after.get(key)]
