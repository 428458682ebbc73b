"""Checks documents from outside, such as JSON on record. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from vhost_balloon.errors import StateError

Document = dict[str, Any]

U64: Final = (1 << 64) - 1


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error that a wrong document causes into a StateError that begins with what."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StateError(f"{what}: {type(error).__name__}: {error}") from None


def number(value: object, low: int = 0, high: int = U64) -> int:
    """Check for a whole number from low to high. Raises ValueError."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is not a number from {low} to {high}")
    return value


def flag(value: object) -> bool:
    """Check for true or false. Raises ValueError."""
    if type(value) is not bool:
        raise ValueError(f"{value!r:.40} is neither true nor false")
    return value


def real(value: Any) -> float:
    """Check for a finite number. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)
