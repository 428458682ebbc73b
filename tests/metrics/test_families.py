"""The metrics in a scrape: names, values, and the life of a VM's series."""

from __future__ import annotations

import math

import pytest
from trio.testing import MockClock

import vhost_balloon
from protocol.virtio_balloon import Queue, StatTag
from tests.support.control_client import GIB, attach
from tests.support.scrapes import Vms, exposition, scrape, two_vms
from vhost_balloon.errors import RingErrorReason
from vhost_balloon.figures.counters import DISCARD_BUCKETS
from vhost_balloon.figures.refusal import EVERY_REASON, OPERATOR, PAUSE_REASONS, Refusal
from vhost_balloon.figures.statistics import HugePages, VmState
from vhost_balloon.metrics.families import FAMILIES
from vhost_balloon.vm.settings import VmSettings
from vhost_balloon.vm.vm import Vm

_DESIGN = """
target_bytes actual_bytes guest_memory_bytes connected reporting_paused state queue_map_ambiguous
guest_resident_bytes reported_bytes_total inflated_bytes_total deflated_bytes_total
freed_bytes_total refused_bytes_total requests_total ring_errors_total config_changes_total
discard_seconds guest_stats_age_seconds
guest_stat_swap_in_bytes_total guest_stat_swap_out_bytes_total guest_stat_major_faults_total
guest_stat_minor_faults_total guest_stat_free_bytes guest_stat_memory_bytes
guest_stat_available_bytes guest_stat_caches_bytes guest_stat_hugetlb_allocations_total
guest_stat_hugetlb_failures_total guest_stat_oom_kills_total guest_stat_alloc_stalls_total
guest_stat_async_scans_total guest_stat_direct_scans_total guest_stat_async_reclaims_total
guest_stat_direct_reclaims_total
"""
_MORE = """
stats_interval_seconds reporting_pause_reason refused_ranges_total front_end_errors_total
front_end_stalls_total report_rate_limit_bytes huge_pages huge_pages_waiting_bytes
huge_pages_freed_total up internal_errors_total held
"""
DESIGN = _DESIGN.split()
MORE = _MORE.split()


@pytest.fixture
async def vms() -> Vms:
    return two_vms()


async def of_vm(vms: Vms, vm: str = "web1") -> dict[str, float]:
    """The series of one VM: NAME, or NAME{VALUE,...} with the values of its other labels."""
    found = {}
    for (name, labels), value in (await scrape(vms)).items():
        if ("vm", vm) in labels:
            others = ",".join(text for label, text in labels if label != "vm")
            short = name.removeprefix("vhost_balloon_")
            found[f"{short}{{{others}}}" if others else short] = value
    return found


# Names


def test_every_metric_of_the_design_exists_and_has_help() -> None:
    assert {family.name for family in FAMILIES} == {*DESIGN, *MORE}
    for family in FAMILIES:
        assert family.help.endswith(".")
        assert "\n" not in family.help


async def test_every_family_has_help_and_type(vms: Vms) -> None:
    body, _ = await exposition(vms).render("")
    lines = body.decode().splitlines()
    for name in (*DESIGN, *MORE, "build_info"):
        assert (
            len([line for line in lines if line.startswith(f"# HELP vhost_balloon_{name} ")]) == 1
        )
        assert (
            len([line for line in lines if line.startswith(f"# TYPE vhost_balloon_{name} ")]) == 1
        )


async def test_version_and_process(vms: Vms) -> None:
    found = await scrape(vms)
    version = (("version", vhost_balloon.__version__),)
    assert found["vhost_balloon_build_info", version] == 1
    assert found["process_resident_memory_bytes", ()] > 1 << 20
    assert found["process_open_fds", ()] > 2
    assert ("process_cpu_seconds_total", ()) in found


# A VM from its configuration to its end


async def test_a_configured_vm_has_its_own_series_at_0(vms: Vms) -> None:
    found = await of_vm(vms)
    assert found["connected"] == 0
    assert found["state{disconnected}"] == 1
    for reason in EVERY_REASON:
        assert found[f"refused_bytes_total{{{reason}}}"] == 0
        assert found[f"refused_ranges_total{{{reason}}}"] == 0
    for queue in Queue:
        assert found[f"requests_total{{{queue.value}}}"] == 0
        for broken in RingErrorReason:
            assert found[f"ring_errors_total{{{queue.value},{broken.value}}}"] == 0
    assert found["ring_errors_total{ring,head}"] == 0
    for name in ("reported", "inflated", "deflated", "freed"):
        assert found[f"{name}_bytes_total"] == 0
    assert found["discard_seconds_count"] == found["discard_seconds_sum"] == 0
    assert len([name for name in found if name.startswith("discard_seconds_bucket")]) == 9
    assert sum(found.values()) - found["stats_interval_seconds"] == 2  # up, and its state


async def test_guest_series_are_left_out_without_a_guest(vms: Vms) -> None:
    web1 = vms["web1"]
    before = (await of_vm(vms)).keys()
    attach(web1, target=GIB, resident=0, stats={StatTag.MEMFREE: 1}, stats_age=0.0)
    guest = (await of_vm(vms)).keys() - before
    assert guest == {
        *("queue_map_ambiguous", "guest_memory_bytes", "target_bytes", "actual_bytes"),
        *("guest_resident_bytes", "guest_stats_age_seconds", "guest_stat_free_bytes"),
    }
    web1.front_end = None
    assert (await of_vm(vms)).keys() == before


async def test_unknown_values_are_left_out(vms: Vms) -> None:
    attach(vms["web1"], guest_memory=0, actual=None, driver_ready=False, resident=0)
    found = await of_vm(vms)
    assert found["guest_resident_bytes"] == 0
    unknown = {"guest_memory_bytes", "target_bytes", "actual_bytes", "guest_stats_age_seconds"}
    assert not unknown & found.keys()


async def test_counters_outlive_the_front_end(vms: Vms) -> None:
    web1 = vms["web1"]
    attach(web1)
    web1.counters.freed_bytes = 4096
    web1.front_end = None
    assert (await of_vm(vms))["freed_bytes_total"] == 4096


async def test_a_removed_vm_takes_all_its_series_with_it(vms: Vms, still_clock: MockClock) -> None:
    rendered = exposition(vms)
    await rendered.render("")
    still_clock.jump(1)
    del vms["web1"]
    vms["web3"] = Vm("web3", VmSettings(offered=0))
    body, _ = await rendered.render("")
    assert b"web1" not in body
    assert body.count(b'vhost_balloon_connected{vm="web3"}') == 1


# Values


async def test_sizes_and_flags(vms: Vms) -> None:
    attach(
        vms["web1"],
        target=512 << 20,
        actual=768 << 20,
        resident=100 << 20,
        state=VmState.OUT_OF_MEMORY,
        queue_map_ambiguous=True,
        pause_reasons=(Refusal.PINS_UNKNOWN,),
        stats_interval=2.5,
        stats_age=1.25,
    )
    found = await of_vm(vms)
    expected = {
        "connected": 1,
        "guest_memory_bytes": GIB,
        "target_bytes": 512 << 20,
        "actual_bytes": 768 << 20,
        "guest_resident_bytes": 100 << 20,
        "queue_map_ambiguous": 1,
        "reporting_paused": 1,
        "stats_interval_seconds": 2.5,
        "guest_stats_age_seconds": 1.25,
    }
    assert {name: found[name] for name in expected} == expected
    states = {name: value for name, value in found.items() if name.startswith("state{")}
    assert states == {f"state{{{s.value}}}": s is VmState.OUT_OF_MEMORY for s in VmState}
    reasons = {reason: found[f"reporting_pause_reason{{{reason}}}"] for reason in PAUSE_REASONS}
    assert reasons == {reason: reason == "pins-unknown" for reason in PAUSE_REASONS}


async def test_an_ordered_pause_shows_without_a_front_end(vms: Vms) -> None:
    vms["web1"].paused = True
    found = await of_vm(vms)
    assert found["reporting_paused"] == found[f"reporting_pause_reason{{{OPERATOR}}}"] == 1
    assert (await of_vm(vms, "web2"))["reporting_paused"] == 0


async def test_huge_pages_and_the_limit_of_reports(vms: Vms) -> None:
    before = (await of_vm(vms)).keys()
    attach(vms["web1"], huge_pages=HugePages(3, 4, 5), report_rate=6)
    found = await of_vm(vms)
    assert {name: found[name] for name in found if "huge_pages" in name or "limit" in name} == {
        "huge_pages{partial}": 3,
        "huge_pages{whole}": 4,
        "huge_pages_waiting_bytes": 5,
        "huge_pages_freed_total": 0,
        "report_rate_limit_bytes": 6,
    }
    assert not [name for name in before if "waiting" in name or "huge_pages{" in name]


async def test_counters(vms: Vms) -> None:
    counters = vms["web1"].counters
    counters.reported_bytes, counters.inflated_bytes, counters.deflated_bytes = 1, 2, 3
    counters.freed_bytes = 1 << 62
    counters.front_end_errors, counters.front_end_stalls, counters.config_changes = 5, 6, 7
    counters.refuse(Refusal.LATE, 4096)
    counters.refuse(Refusal.EMPTY, 0, ranges=2)
    counters.requests[Queue.FREE_PAGE] = 8
    counters.ring_errors["ring", RingErrorReason.MEMORY] = 9
    counters.ring_errors["stats", RingErrorReason.LOOP] = 10
    found = {name: value for name, value in (await of_vm(vms)).items() if value}
    assert found == {
        "up": 1,
        "state{disconnected}": 1,
        "stats_interval_seconds": 10,
        "reported_bytes_total": 1,
        "inflated_bytes_total": 2,
        "deflated_bytes_total": 3,
        "freed_bytes_total": 1 << 62,
        "front_end_errors_total": 5,
        "front_end_stalls_total": 6,
        "config_changes_total": 7,
        "refused_bytes_total{late}": 4096,
        "refused_ranges_total{late}": 1,
        "refused_ranges_total{empty}": 2,
        "requests_total{free-page}": 8,
        "ring_errors_total{ring,memory}": 9,
        "ring_errors_total{stats,loop}": 10,
    }


async def test_histogram_is_cumulative(vms: Vms) -> None:
    histogram = vms["web1"].counters.discard_seconds
    for seconds in (0.00005, 0.0001, 0.003, 0.2, 7.0):
        histogram.observe(seconds)
    found = await of_vm(vms)
    counts = [found[f"discard_seconds_bucket{{{bound}}}"] for bound in (*DISCARD_BUCKETS, "+Inf")]
    assert counts == [2, 2, 2, 3, 3, 3, 3, 4, 5]
    assert found["discard_seconds_count"] == 5
    assert found["discard_seconds_sum"] == pytest.approx(7.20315)


async def test_each_guest_statistic_has_its_own_metric(vms: Vms) -> None:
    attach(vms["web1"], stats={tag: 1000 + tag for tag in StatTag})
    found = await of_vm(vms)
    names = [name for name in DESIGN if name.startswith("guest_stat_")]
    assert sorted(found[name] for name in names) == [1000 + tag for tag in StatTag]
    assert found["guest_stat_free_bytes"] == 1000 + StatTag.MEMFREE
    assert found["guest_stat_direct_reclaims_total"] == 1000 + StatTag.DIRECT_RECLAIM


async def test_large_values_are_written_and_unknown_ones_are_not(vms: Vms) -> None:
    stats = {StatTag.MEMTOT: (1 << 63) - 1, StatTag.MAJFLT: 1 << 63, StatTag.AVAIL: (1 << 64) - 1}
    attach(vms["web1"], stats=stats, stats_age=math.pi * 1e-9)
    found = await of_vm(vms)
    assert float(found["guest_stat_memory_bytes"]) == 2.0**63
    assert "guest_stat_major_faults_total" not in found
    assert "guest_stat_available_bytes" not in found
    assert found["guest_stats_age_seconds"] == math.pi * 1e-9
