"""How long a hold lasts."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.balloon.hold import FREE, Hold, hold_for

TIMES = st.floats(0, 1e9)


@given(TIMES)
def test_no_hold(now: float) -> None:
    assert not FREE.lasts(now)
    assert FREE.left(now) is None


@given(TIMES, TIMES)
def test_a_hold_without_an_end(now: float, later: float) -> None:
    hold = hold_for(None, now)
    assert hold == Hold(math.inf)
    assert hold.lasts(now + later)
    assert hold.left(now + later) is None


@given(TIMES, st.integers(1, 1 << 25), TIMES)
def test_a_hold_ends_by_itself(now: float, seconds: int, later: float) -> None:
    hold = hold_for(seconds, now)
    assert hold.lasts(now)
    left = hold.left(later)
    assert hold.lasts(later) == (later < now + seconds) == (left is not None)
    assert left is None or left > 0
