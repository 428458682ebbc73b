"""The simulated host."""

from __future__ import annotations

import pytest

from tests.policy.worlds.demand import constant
from tests.policy.worlds.host import Host, HostSpec

GIB = 1024.0


def host(swap: float = 0.0, hot: float = 0.0, pressure: float = 0.0) -> Host:
    """64 GiB, of which it uses 2 GiB itself."""
    return Host(HostSpec(64 * GIB, swap, constant(2 * GIB), constant(pressure), hot))


def test_available_is_what_nobody_occupies() -> None:
    one = host()
    one.step(0, 40 * GIB)
    assert one.available == pytest.approx((0.985 * 64 - 42) * GIB)
    assert one.some == one.full == 0
    assert one.spec.line == pytest.approx((1 + 0.02 * 64) * GIB)


def test_it_swaps_until_swap_is_full_and_is_out_of_memory_then() -> None:
    one = host(swap=GIB)
    least = 0.005 * 64 * GIB
    one.step(0, 61.04 * GIB)
    assert one.available == pytest.approx(least)
    assert one.some > 0
    for second in range(1, 10):
        one.step(second, 63 * GIB)
    assert one.swapped == pytest.approx(GIB)
    assert one.available < 0


def test_what_was_swapped_comes_back() -> None:
    one = host(swap=8 * GIB)
    for second in range(10):
        one.step(second, 64 * GIB)
    before = one.total_swapped_in
    for second in range(10, 200):
        one.step(second, 30 * GIB)
    assert one.total_swapped_in > before
    assert one.swapped < 0.1 * GIB


@pytest.mark.parametrize(
    ("available", "hot", "pressure", "some"),
    [(6.0, 12.0, 0.0, 0.2), (20.0, 12.0, 0.0, 0.0), (20.0, 0.0, 0.3, 0.3), (0.48, 0.0, 0.0, 0.15)],
)
def test_tasks_wait(available: float, hot: float, pressure: float, some: float) -> None:
    one = host(hot=hot * GIB, pressure=pressure)
    one.step(0, (0.985 * 64 - 2 - available) * GIB)
    assert one.some == pytest.approx(some)
    assert one.full == pytest.approx(some * some / 2)
