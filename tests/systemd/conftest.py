"""Fixtures of the tests that end a daemon at many moments."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.rig.systemd import SystemdHost
from tests.support.restarting import under_systemd
from tests.support.restarting.moments import MOMENTS, SEED
from tests.support.restarting.under_systemd import Watched


@pytest.fixture(scope="module")
def served(systemd_host: SystemdHost) -> Iterator[Watched]:
    """One guest for all tests of a module."""
    with under_systemd.dying(systemd_host), under_systemd.watched(systemd_host) as found:
        yield found


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random choices, which VHOST_BALLOON_SEED repeats."""
    print(f"VHOST_BALLOON_SEED={SEED} VHOST_BALLOON_RESTARTS={MOMENTS}")
    return random.Random(f"{SEED} {request.node.name}")
