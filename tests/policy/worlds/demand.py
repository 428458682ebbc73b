"""Traces: what a guest's programs and kernel use at each second, in MiB. Pure.

A trace is drawn as a whole before a run starts, so that no rule can change it.
"""

from __future__ import annotations

import math
from random import Random

LENGTH = 1800
"""Seconds a run."""

GIB = 1024.0

Trace = list[float]
"""One entry a second of a run."""


def constant(level: float) -> Trace:
    """The same all the time."""
    return [level] * LENGTH


def sine(low: float, high: float, period: float, phase: float) -> Trace:
    """Day and night. phase: part of the period that has passed at the start, 0 to 1."""
    middle, swing = (low + high) / 2, (high - low) / 2
    return [
        middle + swing * math.sin(2 * math.pi * (second / period + phase))
        for second in range(LENGTH)
    ]


def ramps(base: float, corners: list[tuple[float, float]]) -> Trace:
    """Straight lines between corners (second, level), base before the first."""
    trace: Trace = []
    before, level = 0.0, base
    for when, height in [*corners, (float(LENGTH), corners[-1][1] if corners else base)]:
        span = max(when - before, 1e-9)
        while len(trace) < min(when, LENGTH):
            trace.append(level + (height - level) * (len(trace) - before) / span)
        before, level = when, height
    return trace


def saw(rng: Random, base: float, burst: float) -> Trace:
    """Bursts that come in 3 to 4 s, stay 20 to 60 s, go at once and leave 60 to 300 s between."""
    corners: list[tuple[float, float]] = []
    start = rng.uniform(0, 300)
    while start < LENGTH:
        top = base + burst * rng.uniform(0.85, 1)
        up = start + rng.uniform(3, 4)
        end = up + rng.uniform(20, 60)
        corners += [(start, base), (up, top), (end, top), (end + 0.5, base)]
        start = end + rng.uniform(60, 300)
    return ramps(base, corners)


def jvm(rng: Random, base: float, quick: float, slow: float) -> Trace:
    """A service that starts once, takes quick MiB in 5 to 8 s, and slow MiB over 400 s more."""
    start = rng.uniform(100, 1300)
    up = start + rng.uniform(5, 8)
    return ramps(base, [(start, base), (up, base + quick), (up + 400, base + quick + slow)])


def leak(rng: Random, low: float, high: float) -> Trace:
    """Grows by 3 to 12 MiB/s, and starts anew at the top."""
    rate = rng.uniform(3, 12)
    return [low + (rate * second) % (high - low) for second in range(LENGTH)]


def rise(start: float, seconds: float, base: float, top: float, hold: float) -> Trace:
    """From base to top once, and back to base after hold seconds at the top."""
    up = start + seconds
    end = up + hold
    return ramps(base, [(start, base), (up, top), (end, top), (end + 0.5, base)])
