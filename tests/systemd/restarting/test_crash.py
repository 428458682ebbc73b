"""The daemon dies at each step of answering its front end and its guest, and no VM notices.

Real QEMU under real systemd; QEMU waits for a reply at many of these moments. The environment
variables are described in tests.support.restarting.moments.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.restarting import under_systemd
from tests.support.restarting.dying import (
    GUEST_STEPS,
    INJECTED,
    ORDER,
    START_STEPS,
    STATE_STEPS,
    STEPS,
)
from tests.support.restarting.moments import MOMENTS, finished, integrity
from tests.support.restarting.under_systemd import Watched, death, keep_busy, order

pytestmark = pytest.mark.guest


def points(chance: random.Random, most: int) -> list[tuple[str, str]]:
    """Return `most` steps with "before" or "after", shuffled so that any prefix has all kinds."""
    names = list(STEPS)
    first = [(name, chance.choice(("before", "after"))) for name in names]
    other = {"before": "after", "after": "before"}
    second = [(name, other[when]) for name, when in first]
    chance.shuffle(first)
    chance.shuffle(second)
    return [*first, *second][:most]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_death_at_each_step(served: Watched, chance: random.Random, how: str) -> None:
    host = served.host
    with integrity(served), ThreadPoolExecutor(1) as worker:
        # test_restart.py has the other half of the kills, at random moments.
        for step, when in points(chance, MOMENTS if how == "raise" else MOMENTS // 2):
            # Only busy messages and rings reach these steps.
            kinds = under_systemd.BUSY[:1] if step in GUEST_STEPS else under_systemd.BUSY[::2]
            busy, count = chance.choice(kinds), chance.randint(1, 12)
            if step in STATE_STEPS:
                busy = under_systemd.stopping
            if step in START_STEPS:
                busy, count = under_systemd.restarting, 1  # a start has each step once
            name = f"{how} {when} {step} ({count}) while {busy.__name__}"
            print(name)
            with death(host) as end:
                died = worker.submit(end.wait)
                order(host, step, when, count, how)
                keep_busy(served, busy, chance, end)
            finished(served, died.result(), name)
            assert not host.path(str(ORDER)).exists(), f"{name}: the step was not reached"
            if how == "raise":
                host.wait_logged(f"{INJECTED} {when} {step}")
