"""Parses and formats sizes in bytes, with binary units as in QEMU. Pure."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

UNKNOWN: Final = "-"

SMALLEST_GUEST: Final = 16 << 20
"""Bytes. Linux does not run on less, so a smaller memory of a guest can only be a mistake: most
often MiB or KiB are meant, as QEMU's monitor and virsh take them."""

_LARGEST_MEANT: Final = 1 << 40
""""1024" does not mean 1024 GiB."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SIZE: Final = re.compile(
    r"(?P<number>[0-9]{1,25}(\.[0-9]{0,25})?|\.[0-9]{1,25})((?P<unit>[KMGTPE])(iB)?|B)?",
    re.IGNORECASE,
)
_MAX_SIZE: Final = (1 << 63) - 1  # the largest integer in QMP


def parse_size(text: str) -> int:
    """Return the bytes of a text such as 1073741824, 512M, 1.5G or 2GiB. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 512M, 1.5G or 1073741824{meant(text)}")
    unit = (match["unit"] or "B").upper()
    size: Fraction = Fraction(match["number"]) * 1024 ** "BKMGTPE".index(unit)
    if unit == "B" and size.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if not 1 <= size <= _MAX_SIZE:
        raise ValueError(f"{text!r} is not between 1 byte and 8 EiB")
    return round(size)


def meant(text: str) -> str:
    """The hint for what is not a size, such as 4GB, 4Gi, 4 G and 1,5G; "" if there is none."""
    plain = re.sub(r"\s+", "", text[:40].replace(",", "."))
    plain = re.sub(r"(?<=[KMGTPE])[Bi]$", "", plain, flags=re.IGNORECASE)
    return f": did you mean {plain}?" if plain != text and _SIZE.fullmatch(plain) else ""


def implausible(text: str, size: int) -> str | None:
    """Why a guest's memory of size bytes, written as text, is a mistake, and what may be meant.

    None if it is plausible.
    """
    if size >= SMALLEST_GUEST:
        return None
    problem = f"{text} is {format_size(size)}, less than a guest can run on"
    number = re.match(r"[1-9][0-9]{0,12}(?![0-9.])", text)
    written = [
        f"{number[0]}{unit} for {unit}iB"
        for power, unit in enumerate("KMG", 1)
        if number and SMALLEST_GUEST <= int(number[0]) << 10 * power < _LARGEST_MEANT
    ]
    return f"{problem}; write {' or '.join(written)}" if written else problem


def parse_rate(text: str) -> int:
    """Return the bytes a second of a text such as 512M/s or 512M. Raises ValueError."""
    return parse_size(text.removesuffix("/s"))


def format_size(size: int | None) -> str:
    """Return a size in a binary unit with up to three significant digits; "-" for None."""
    if size is None:
        return UNKNOWN
    value, unit = float(size), 0
    while value >= 1023.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    if unit == 0 or value >= 99.95:
        return f"{value:.0f} {_UNITS[unit]}"
    return f"{value:.{2 if value < 9.995 else 1}f}".rstrip("0").rstrip(".") + f" {_UNITS[unit]}"
