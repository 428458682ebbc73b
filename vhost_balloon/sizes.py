"""TODO."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


_SIZE: Final = re.compile(
    r"(?P<number>[0-9]{1,25}(\.[0-9]{0,25})?|\.[0-9]{1,25})((?P<unit>[KMGTPE])(iB)?|B)?",
    re.IGNORECASE,
)


_MAX_SIZE: Final = (1 << 63) - 1  # QMP's integers


UNKNOWN: Final = "-"


def parse_size(text: str) -> int:
    """Bytes of 1073741824, 512M, 1.5G or 2GiB; units are binary, as QEMU's. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size such as 512M, 1.5G or 1073741824")
    unit = (match["unit"] or "B").upper()
    size = Fraction(match["number"]) * 1024 ** "BKMGTPE".index(unit)
    if unit == "B" and size.denominator != 1:
        raise ValueError(f"{text!r} is no whole number of bytes")
    if not 1 <= size <= _MAX_SIZE:
        raise ValueError(f"{text!r} is not between 1 byte and 8 EiB")
    return int(size)


def parse_rate(text: str) -> int:
    """Bytes a second of 512M/s, or of a size alone. Raises ValueError."""
    return parse_size(text.removesuffix("/s"))


def format_size(size: int | None) -> str:
    """Three significant digits in a binary unit; "-" for what is not known."""
    if size is None:
        return UNKNOWN
    value, unit = float(size), 0
    while value >= 1023.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    if unit == 0 or value >= 99.95:
        return f"{value:.0f} {_UNITS[unit]}"
    return f"{value:.{2 if value < 9.995 else 1}f}".rstrip("0").rstrip(".") + f" {_UNITS[unit]}"
