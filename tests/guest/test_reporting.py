"""Real guests: freed memory comes back to the host by free page reporting alone."""

from __future__ import annotations

import os

import pytest

from tests.rig.devices.memory import hotplug_dimm
from tests.rig.inside import workload
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.waiting import wait_until
from tests.support.helpers import resident
from tests.support.huge_pages import HugePages, need_root
from tests.support.vms.guests import (
    HUGE_PAGE,
    Attached,
    attached,
    corruption,
    memory_files,
    resident_between,
)

pytestmark = pytest.mark.guest


def fill_and_free(both: Attached, size: int) -> None:
    workload.fill(both.guest, size, timeout=200)
    assert both.guest.resident() > size
    workload.free(both.guest)


def assert_comes_back(both: Attached) -> float:
    """The issue's bar: below 250 MiB within 10 s of freeing 600 MiB."""
    fill_and_free(both, 600 * MiB)
    took = wait_until(lambda: both.guest.resident() < 250 * MiB, 10)
    print(f"below 250 MiB {took:.1f} s after freeing; now {both.guest.resident() / MiB:.0f} MiB")
    assert corruption(both.guest) == []
    return took


def test_freed_memory_comes_back() -> None:
    with attached() as both:
        assert "page-reporting" in both.vm()["features"]
        assert_comes_back(both)
        vm = both.vm()
        assert vm["freed-bytes"] > 400 * MiB
        assert vm["resident"] == pytest.approx(both.guest.resident(), abs=32 * MiB)
        assert vm["refused-bytes"] == {}
        print(f"daemon: PSS {both.daemon.pss() / MiB:.1f} MiB, RSS {both.daemon.rss() / MiB:.1f}")


def test_resident_memory_of_a_paused_guest_is_told_exactly() -> None:
    """While the guest cannot touch anything, the daemon and st_blocks must agree to the byte."""
    with attached() as both:
        workload.fill(both.guest, 300 * MiB)
        workload.free(both.guest)
        before = both.vm()
        wait_until(lambda: both.vm()["freed-bytes"] > before["freed-bytes"], 20)
        both.guest.stop()  # returns once the rings are stopped
        paused = both.vm()
        assert not paused["driver-ready"]
        assert paused["resident"] == both.guest.resident()
        both.guest.cont()
        both.wait_driver()


def test_without_reporting_nothing_comes_back() -> None:
    with attached("--no-reporting") as both:
        assert "page-reporting" not in both.vm()["features"]
        fill_and_free(both, 600 * MiB)
        assert both.guest.run("sleep 10; echo slept", 30) == "slept\n"
        assert both.guest.resident() > 600 * MiB
        assert both.vm()["reported-bytes"] == 0


def test_guest_that_clears_freed_pages() -> None:
    """init_on_free negotiates PAGE_POISON with the value 0: reported pages may be dropped."""
    with attached(kernel_arguments="init_on_free=1") as both:
        assert "page-poison" in both.vm()["features"]
        assert_comes_back(both)
        # Files that stay are not touched by what is reported around them.
        keep = "dd if=/dev/urandom of=/tmp/keep bs=1M count=200 2>/dev/null"
        both.guest.run(f"{keep}; md5sum /tmp/keep >/tmp/sum", 120)
        reported = both.vm()["reported-bytes"]
        workload.fill(both.guest, 300 * MiB)
        workload.free(both.guest)
        wait_until(lambda: both.vm()["reported-bytes"] > reported + 100 * MiB, 20)
        assert both.guest.run("md5sum -c /tmp/sum", 120) == "/tmp/keep: OK\n"


def test_guest_that_poisons_freed_pages_keeps_them() -> None:
    with attached(flavour="generic", kernel_arguments="page_poison=1") as both:
        assert "page-poison" in both.vm()["features"]
        fill_and_free(both, 600 * MiB)
        wait_until(lambda: both.vm()["reported-bytes"] > 400 * MiB, 30)
        vm = both.vm()
        assert vm["freed-bytes"] == 0
        assert vm["refused-bytes"]["poison"] == vm["reported-bytes"]
        assert both.guest.resident() > 600 * MiB
        workload.fill(both.guest, 600 * MiB, "again")  # the kernel checks the poison as it takes
        assert corruption(both.guest) == []


@pytest.mark.timeout(420)
def test_every_region_gives_back_around_the_pci_hole_and_a_dimm() -> None:
    with attached(memory=Memory(4 * GiB, slots=1)) as both:
        hotplug_dimm(both.guest)
        regions = both.vm()["regions"]
        assert len(regions) == 3
        assert both.vm()["guest-memory"] == 5 * GiB
        both.guest.run("mount -o remount,size=5G /tmp")

        def parts() -> list[int]:
            """Below the hole, above it, and the DIMM: each region's share of its file."""
            files = sorted(memory_files(both.guest), key=os.path.getsize)
            dimm, boot = files
            halves = ((0, 2 * GiB), (2 * GiB, 4 * GiB))
            return [*(resident_between(boot, *half) for half in halves), resident(dimm)]

        workload.fill(both.guest, 4600 * MiB, timeout=250)
        assert min(parts()) > 800 * MiB
        workload.free(both.guest)
        wait_until(lambda: max(parts()) < 400 * MiB, 60)
        print([f"{size / MiB:.0f} MiB" for size in parts()])
        assert corruption(both.guest) == []


def test_guest_on_two_memfds() -> None:
    with attached(memory=Memory(GiB, nodes=2)) as both:
        assert len(both.vm()["regions"]) >= 2
        workload.fill(both.guest, 800 * MiB)
        files = memory_files(both.guest)
        assert len(files) == 2
        assert min(map(resident, files)) > 250 * MiB
        workload.free(both.guest)
        wait_until(lambda: max(map(resident, files)) < 200 * MiB, 15)


def test_guest_on_huge_pages_gives_whole_ones_back() -> None:
    size = 512 * MiB
    need_root("HUGE PAGES")
    with (
        HugePages(size // HUGE_PAGE + 8) as pool,
        attached("--discard-hugetlb", memory=Memory(size, "hugetlb")) as both,
    ):
        assert {region["page-size"] for region in both.vm()["regions"]} == {HUGE_PAGE}
        # A file that stays: its pages share huge pages with ones that are freed around it.
        both.guest.run("dd if=/dev/urandom of=/tmp/keep bs=1M count=60; md5sum /tmp/keep >/tmp/sum")
        workload.fill(both.guest, 250 * MiB)
        full = both.guest.resident()
        free = pool.free()
        workload.free(both.guest)
        wait_until(lambda: both.guest.resident() < full - 200 * MiB, 15)
        assert pool.free() >= free + 200 * MiB // HUGE_PAGE
        assert both.vm()["freed-bytes"] % HUGE_PAGE == 0
        # The balloon takes 4 KiB pages: no huge page is zeroed in part.
        workload.set_target(both.qmp, size - 100 * MiB)
        vm = both.vm()
        assert sum(vm["huge-pages"][state] for state in ("partial", "whole")) > 0
        assert vm["freed-bytes"] % HUGE_PAGE == 0
        assert both.guest.run("md5sum -c /tmp/sum") == "/tmp/keep: OK\n"
        assert corruption(both.guest) == []


def test_huge_pages_are_kept_unless_asked_for() -> None:
    size = 256 * MiB
    need_root("HUGE PAGES")
    with (
        HugePages(size // HUGE_PAGE + 8),
        attached(memory=Memory(size, "hugetlb")) as both,
    ):
        workload.fill(both.guest, 60 * MiB)
        full = both.guest.resident()
        workload.free(both.guest)
        wait_until(lambda: both.vm()["refused-bytes"].get("hugetlb", 0) > 0, 15)
        assert both.vm()["freed-bytes"] == 0
        assert both.guest.resident() >= full
