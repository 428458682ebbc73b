"""Real guests: inflating, deflating, statistics, and the life of a machine around them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.rig.inside import workload
from tests.rig.memory import GiB, MiB
from tests.rig.waiting import wait_until
from tests.support.vms.guests import Attached, attached, corruption

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def both() -> Iterator[Attached]:
    """One guest for all tests that leave it with an empty balloon and its driver loaded."""
    with attached("--stats-interval=1") as one:
        yield one


def fresh_stats(both: Attached) -> dict[str, int]:
    """A sample that was taken after this call."""
    asked = time.time()
    wait_until(lambda: both.guest_stats()["last-update"] > asked, 15)
    stats: dict[str, int] = both.guest_stats()["stats"]
    return stats


def free_memory_agrees(both: Attached) -> bool:
    stats, info = fresh_stats(both), both.guest.meminfo()
    pairs = (("stat-free-memory", "MemFree"), ("stat-available-memory", "MemAvailable"))
    return all(abs(stats[stat] - info[line]) < 48 * MiB for stat, line in pairs)


def assert_stats_agree(both: Attached) -> None:
    # Up to 128 MiB are out of the free lists while they are reported: soon none is.
    wait_until(lambda: free_memory_agrees(both), 30)
    stats, info = fresh_stats(both), both.guest.meminfo()
    assert stats["stat-total-memory"] == info["MemTotal"]
    assert stats["stat-disk-caches"] == pytest.approx(info["Cached"], abs=16 * MiB)
    assert stats["stat-minor-faults"] > 100
    assert len(stats) == 16
    assert 2**64 - 1 not in stats.values()


def test_inflate_and_deflate(both: Attached) -> None:
    before, freed = both.guest.meminfo(), both.guest.vmstat()["balloon_deflate"]
    inflated = workload.set_target(both.qmp, 512 * MiB)
    vm = both.vm()
    assert (vm["target"], vm["actual"], vm["balloon"]) == (512 * MiB, 512 * MiB, 512 * MiB)
    # Linux counts ballooned pages out of its total unless it deflates on OOM.
    assert both.guest.meminfo()["MemFree"] < before["MemFree"] - 350 * MiB
    assert both.guest.resident() < 512 * MiB
    assert vm["inflated-bytes"] >= 512 * MiB
    deflated = workload.set_target(both.qmp, GiB)
    assert both.vm()["balloon"] == 0
    assert both.vm()["resident"] == pytest.approx(both.guest.resident(), abs=16 * MiB)
    assert both.vm()["deflated-bytes"] >= 512 * MiB
    # MemFree tells it late: pages that are being reported do not count as free.
    assert both.guest.vmstat()["balloon_deflate"] - freed >= 512 * MiB // 4096
    print(f"512 MiB: inflated in {inflated:.2f} s, deflated in {deflated:.2f} s")


def test_target_may_come_from_far_beyond(both: Attached) -> None:
    both.qmp.execute("balloon", {"value": 64 * GiB})
    assert both.vm()["target"] == GiB
    assert both.qmp.execute("query-balloon") == {"actual": GiB}


def test_balloon_change_events(both: Attached) -> None:
    both.qmp.events.clear()
    workload.set_target(both.qmp, 900 * MiB)
    event = both.qmp.wait_event(
        "BALLOON_CHANGE", matching=lambda event: event["data"]["actual"] == 900 * MiB
    )
    assert event["data"]["id"] == both.vm()["id"]
    workload.set_target(both.qmp, GiB)


def test_deflate_on_oom(both: Attached) -> None:
    workload.set_target(both.qmp, 400 * MiB)
    deflated = both.vm()["deflated-bytes"]
    workload.press(both.guest, 600 * MiB).wait(120)  # more than the balloon leaves
    assert both.vm()["deflated-bytes"] > deflated + 100 * MiB
    workload.release_pressure(both.guest)
    workload.set_target(both.qmp, GiB)
    assert corruption(both.guest) == []


def test_statistics_agree_with_the_guest(both: Attached) -> None:
    assert_stats_agree(both)


def test_statistics_and_balloon_go_on_after_stop_and_cont(both: Attached) -> None:
    workload.set_target(both.qmp, 900 * MiB)
    for _ in range(3):
        both.guest.stop()
        assert not both.vm()["driver-ready"]
        both.guest.cont()
        both.wait_driver()
        vm = both.vm()
        assert (vm["target"], vm["actual"]) == (900 * MiB, 900 * MiB)
        assert both.guest.resident() < 900 * MiB
    assert_stats_agree(both)
    workload.set_target(both.qmp, GiB)


def test_reboot_with_an_inflated_balloon(both: Attached) -> None:
    workload.set_target(both.qmp, 700 * MiB)
    both.qmp.events.clear()
    both.guest.reboot()
    # The new driver starts with an empty balloon, then gets to the target that was kept.
    both.qmp.wait_event("BALLOON_CHANGE", matching=lambda event: event["data"]["actual"] == GiB)
    wait_until(lambda: both.vm()["actual"] == 700 * MiB, 30)
    assert both.vm()["target"] == 700 * MiB
    assert both.guest.resident() < 700 * MiB
    assert_stats_agree(both)
    workload.set_target(both.qmp, GiB)


def test_reset_with_an_inflated_balloon(both: Attached) -> None:
    workload.set_target(both.qmp, 800 * MiB)
    both.guest.reset()
    both.wait_driver()
    wait_until(lambda: both.vm()["actual"] == 800 * MiB, 30)
    assert_stats_agree(both)
    workload.set_target(both.qmp, GiB)


def test_driver_unload_and_reload(both: Attached) -> None:
    workload.set_target(both.qmp, 700 * MiB)
    free = both.guest.meminfo()["MemFree"]
    both.guest.unload_driver()
    # Pages that are being reported, up to 128 MiB at a time, do not count as free.
    wait_until(lambda: both.guest.meminfo()["MemFree"] > free + 250 * MiB, 20)
    vm = both.vm()
    assert not vm["driver-ready"]
    assert (vm["balloon"], vm["target"]) == (0, 700 * MiB)
    both.guest.load_driver()
    wait_until(lambda: both.vm()["actual"] == 700 * MiB, 30)
    assert_stats_agree(both)
    workload.set_target(both.qmp, GiB)


def test_target_before_the_driver_is_pending() -> None:
    with attached(driver=False) as both:
        vm = both.vm()
        assert vm["attached"]
        assert not vm["driver-ready"]
        both.qmp.execute("balloon", {"value": 768 * MiB})
        assert both.vm()["pending"]
        both.guest.load_driver()
        wait_until(lambda: both.vm()["actual"] == 768 * MiB, 30)
        assert not both.vm()["pending"]
