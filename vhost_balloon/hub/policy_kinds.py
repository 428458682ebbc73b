"""The kinds of values that the policy's settings have."""

from __future__ import annotations

import re
from typing import Final

from vhost_balloon.policy.settings import Mode
from vhost_balloon.setting_kinds import SIZE, Kind, choice, is_file_name_text
from vhost_balloon.sizes import SMALLEST_GUEST, format_size

MAX_WEIGHT: Final = 10_000

_SHARE: Final = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,9})?) ?%")


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value not in ("on", "off"):
        raise ValueError
    return value == "on"


def _weight(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_WEIGHT:
        raise ValueError
    return value


def _guest_size(value: object) -> int:
    size: int = SIZE.read(value)
    if size < SMALLEST_GUEST:
        raise ValueError
    return size


def _reserve(value: object) -> int | float:
    share = _SHARE.fullmatch(value) if isinstance(value, str) else None
    if share is not None:
        value = float(share[1]) / 100
    if not isinstance(value, float):
        return _guest_size(value)
    if not 0 < value < 1:
        raise ValueError
    return value


def _cgroup(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/") or not is_file_name_text(value):
        raise ValueError
    return value


MODE: Final = choice(Mode, "PolicyMode")
SWITCH: Final = Kind('"on" or "off"', "bool", _switch)
WEIGHT: Final = Kind(f"a whole number from 1 to {MAX_WEIGHT}", "int", _weight)
GUEST_SIZE: Final = Kind(
    f"a size of {format_size(SMALLEST_GUEST)} or more, such as 512M",
    "int",
    _guest_size,
    hint=SIZE.hint,
)
RESERVE: Final = Kind(
    f"a size of {format_size(SMALLEST_GUEST)} or more, such as 4G, or a share of the host, such as "
    "10% or 0.1",
    "number",
    _reserve,
    hint=SIZE.hint,
)
CGROUP: Final = Kind(
    "the absolute path of a folder, such as /sys/fs/cgroup/machine.slice", "str", _cgroup
)
