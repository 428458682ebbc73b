"""A real guest on hugetlb memory: what its balloon holds comes back, and no byte is lost."""

from __future__ import annotations

import random

import pytest

from tests.rig.inside import workload
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.waiting import wait_until
from tests.support.huge_pages import HugePages, need_root
from tests.support.vms.guests import HUGE_PAGE, Attached, attached, corruption

pytestmark = pytest.mark.guest

SECONDS = 45

# Bit 23 of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h, KPF_OFFLINE): in the balloon.
# Guest memory begins at 0 in its file, so 512 page frames are one of the host's huge pages.
_HELD = """od -An -v -tx8 /proc/kpageflags | awk '
    { for (i = 1; i <= NF; i++) {
        if (substr($i, 11, 1) ~ /[89a-f]/) pages++
        if (++frames % 512 == 0) { whole += pages == 512; held += pages; pages = 0 }
    } }
    END { print whole + 0, held + 0 }'"""


def held_by_the_balloon(both: Attached) -> tuple[int, int]:
    """By the guest's own account: whole huge pages, and pages of 4 KiB in all."""
    whole, held = both.guest.run(_HELD, 180).split()
    return int(whole), int(held)


def use_all(both: Attached) -> None:
    """Have every huge page allocated on the host, and the guest's memory free."""
    workload.fill(both.guest, 880 * MiB, timeout=240)
    workload.free(both.guest)


def move_targets(both: Attached) -> None:
    """The integrity workload, while the balloon grows and shrinks at random."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    targets = random.Random(seed)
    run = workload.Integrity(both.guest, SECONDS)

    def over() -> bool:
        both.qmp.execute("balloon", {"value": targets.randrange(560, 1024) * MiB})
        return run.report().finished

    wait_until(over, SECONDS * 6)
    report = run.wait(60)
    print(f"{report.verified} files verified, {report.bad_bytes} bad bytes")
    assert report.bad_bytes == 0
    assert report.verified > 20


@pytest.mark.timeout(900)
def test_half_a_guest_on_huge_pages_comes_back_and_no_byte_is_lost() -> None:
    need_root("HUGE PAGES")
    with (
        HugePages(GiB // HUGE_PAGE + 8) as pool,
        attached(
            "--discard-hugetlb",
            "--no-reporting",
            "--stats-interval=1",
            memory=Memory(GiB, "hugetlb"),
        ) as both,
    ):
        use_all(both)
        move_targets(both)
        workload.set_target(both.qmp, GiB)
        use_all(both)
        full, free = both.guest.resident(), pool.free()
        assert full > 850 * MiB
        took = workload.set_target(both.qmp, GiB // 2)
        whole, held = held_by_the_balloon(both)
        back = full - both.guest.resident()
        vm = both.vm()
        print(
            f"inflated to half in {took:.1f} s: {held * 4096 / MiB:.0f} MiB held, {whole} whole "
            f"huge pages of it (known: {vm['huge-pages']}), {back / MiB:.0f} MiB came back; "
            f"{vm['huge-pages-freed']} freed in all, refused {vm['refused-bytes']}"
        )
        assert held >= 500 * MiB // 4096
        assert back >= 0.9 * whole * HUGE_PAGE > 0
        assert (pool.free() - free) * HUGE_PAGE == back
        move_targets(both)
        assert corruption(both.guest) == []
