"""Real guests: the balloon unplugged and plugged in again, beside QEMU's own.

QEMU keeps the connection to a back end while its device is unplugged, and begins a new one on it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig.devices.balloon import plug_balloon, unplug_balloon
from tests.rig.inside import workload
from tests.rig.memory import MiB
from tests.rig.waiting import wait_until
from tests.support.vms.compared import MOSTLY_OURS, Side, with_balloon
from tests.support.vms.guests import corruption

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

RAM = 512 * MiB


@pytest.fixture(scope="module", params=MOSTLY_OURS)
def port(request: pytest.FixtureRequest) -> Iterator[Side]:
    """512 MiB, and a balloon that can be unplugged."""
    with with_balloon(request.param, port=True) as side:
        yield side


def replug(side: Side) -> None:
    """Unplug the balloon, which deflates it; plug in a new one."""
    unplug_balloon(side.guest)
    assert side.balloon() == 0
    plug_balloon(side.guest, own=not side.is_ours)
    side.poll_stats()
    side.wait_sample()


def assert_new(side: Side) -> None:
    """The balloon is empty, and nothing was ordered of it."""
    side.settle()
    assert (side.actual(), side.balloon()) == (RAM, 0)


def assert_works(side: Side) -> None:
    """The balloon inflates, deflates and reports; leaves 448 MiB ordered."""
    for size in (384 * MiB, RAM, 448 * MiB):
        workload.set_target(side.qmp, size)
        assert side.balloon() == RAM - size
    workload.fill(side.guest, 200 * MiB)
    filled = side.guest.resident()
    workload.free(side.guest)
    wait_until(lambda: side.guest.resident() < filled - 100 * MiB, 20)
    assert side.wait_sample()["stat-total-memory"] == side.guest.meminfo()["MemTotal"]
    assert corruption(side.guest) == []


def test_a_balloon_that_is_plugged_in_again_is_a_new_one(port: Side) -> None:
    for _ in range(3 if port.is_ours else 1):
        port.order(448 * MiB)
        replug(port)  # while the guest may still report what assert_works() freed
        assert_new(port)
        assert_works(port)


def test_the_new_one_lives_through_a_pause_and_a_reset(port: Side) -> None:
    port.order(448 * MiB)
    port.guest.stop()
    port.guest.cont()
    port.settle()
    assert (port.actual(), port.balloon()) == (448 * MiB, 64 * MiB)
    if port.is_ours:
        port.guest.reset()
        wait_until(lambda: port.balloon() == 64 * MiB, 30)
        assert_works(port)
        replug(port)
        assert_new(port)
