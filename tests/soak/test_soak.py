"""The soak in its smallest form; for a long run: python -m tests.soak."""

from __future__ import annotations

import os

import pytest

from tests.rig.errors import RigUnavailable
from tests.rig.fixtures import refuse
from tests.rig.provisioning.packages import SYSTEMD
from tests.soak.run import soak

pytestmark = [pytest.mark.guest, pytest.mark.rig(SYSTEMD)]


@pytest.mark.timeout(280)
def test_nothing_is_lost_or_left_behind_by_restarts() -> None:
    seed = int.from_bytes(os.urandom(3))
    try:
        outcome = soak(15, real=1, simulated=8, seed=seed)
    except RigUnavailable as error:
        refuse(error.reason)
    print(f"\n{outcome.summary()}")
    assert outcome.problems == []
    assert outcome.restarts >= 6
    assert outcome.herd["reconnect"] + outcome.herd["stop"] > 0
    assert outcome.integrity[0].verified > 0
