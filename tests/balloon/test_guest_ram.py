"""Which of the shared regions count as the guest's memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import GIB, MIB
from vhost_balloon.balloon.guest_ram import SHARE, TOLERANCE, GuestRam

RAM = 512 * MIB
KERNEL = 113 * MIB
"""What Linux does not count of a guest that memory can be plugged into."""
HOLE = 0xE000_0000
ABOVE = 1 << 32


def judged(regions: dict[int, int], total: int | None) -> GuestRam:
    ram = GuestRam()
    ram.share(regions)
    ram.total = total
    ram.judge()
    return ram


@pytest.mark.parametrize(
    ("regions", "total", "size"),
    [
        ({0: RAM}, RAM - KERNEL, RAM),
        ({0: RAM, ABOVE: 2 * GIB}, RAM - KERNEL, RAM),  # an empty virtio-mem device
        ({0: RAM, ABOVE: 2 * GIB}, GIB - KERNEL, RAM),  # one that is plugged in part
        ({0: RAM, ABOVE: 2 * GIB}, RAM + 2 * GIB - KERNEL, RAM + 2 * GIB),  # ... and in full
        ({0: RAM, HOLE: 256 * MIB}, RAM - KERNEL, RAM),  # an ivshmem
        ({0: RAM, ABOVE: GIB}, RAM - KERNEL, RAM),  # a DIMM that is not online
        ({0: RAM, ABOVE: GIB}, RAM + GIB - KERNEL, RAM + GIB),  # one that is
        ({0: RAM, HOLE: 256 * MIB, ABOVE: GIB}, RAM + GIB - KERNEL, RAM + GIB),
        ({0: RAM, HOLE: 256 * MIB, ABOVE: GIB}, RAM - KERNEL, RAM),
        ({0: 2 * GIB, ABOVE: 6 * GIB}, 8 * GIB - 200 * MIB, 8 * GIB),
        ({0: 2 * GIB, ABOVE: 6 * GIB, 1 << 40: 6 * GIB}, 8 * GIB - 200 * MIB, 8 * GIB),
        ({0: RAM, ABOVE: GIB}, None, RAM + GIB),  # the guest does not say
        ({0: RAM, ABOVE: GIB}, 0, RAM),  # a lie
        ({0: RAM, ABOVE: GIB}, (1 << 64) - 1, RAM + GIB),
        ({0: 16 * GIB}, 1, 16 * GIB),
        ({}, RAM, 0),
    ],
)
def test_what_counts(regions: dict[int, int], total: int | None, size: int) -> None:
    ram = judged(regions, total)
    assert ram.size == size
    assert ram.judged is (total is not None)


def test_ram_in_the_file_of_the_lowest_region_counts_whatever_the_guest_says() -> None:
    """Its kernel may have set much aside for a crash. Other files stay doubtful."""
    ram, files = GuestRam(), {0: "ram", ABOVE: "ram", 2 * ABOVE: "other"}
    ram.share({0: 2 * GIB, ABOVE: 2 * GIB, 2 * ABOVE: GIB, 3 * ABOVE: GIB}, files)
    ram.total = 3 * GIB
    assert ram.needs_sample()
    ram.judge()
    assert ram.size == 4 * GIB
    assert ram.left_out == {2 * ABOVE, 3 * ABOVE}
    ram.share({0: 2 * GIB, ABOVE: 2 * GIB}, files)
    assert not ram.needs_sample()


def test_regions_whose_files_are_not_known_are_not_of_one_file() -> None:
    ram = GuestRam()
    ram.share({0: GIB, ABOVE: GIB, 2 * ABOVE: GIB}, {2 * ABOVE: "other"})
    ram.total = GIB
    ram.judge()
    assert ram.size == GIB


@pytest.mark.parametrize("total", [RAM, 10 * GIB])
def test_the_limit(total: int) -> None:
    most = total + max(total // SHARE, TOLERANCE)
    assert judged({0: RAM, ABOVE: most - RAM}, total).size == most
    assert judged({0: RAM, ABOVE: most - RAM + 1}, total).size == RAM


def test_before_it_is_judged_all_counts() -> None:
    ram = GuestRam()
    ram.share({0: RAM, ABOVE: GIB})
    assert (ram.size, ram.judged) == (RAM + GIB, False)
    ram.total = RAM
    assert (ram.size, ram.judged) == (RAM + GIB, False)


@pytest.mark.parametrize(
    ("regions", "total", "needed"),
    [
        ({0: RAM}, None, False),
        ({0: RAM}, 1, False),
        ({0: RAM, ABOVE: GIB}, None, True),
        ({0: RAM, ABOVE: GIB}, RAM, True),
        ({0: RAM, ABOVE: GIB}, RAM + GIB, False),
        ({}, None, False),
    ],
)
def test_whether_an_order_needs_a_sample(
    regions: dict[int, int], total: int | None, needed: bool
) -> None:
    ram = judged(regions, total)
    assert ram.needs_sample() is needed
    ram.stated = RAM
    assert not ram.needs_sample()


def test_a_region_that_comes_later_counts_until_it_is_judged() -> None:
    ram = judged({0: RAM, HOLE: 256 * MIB}, RAM)
    ram.share({0: RAM, HOLE: 256 * MIB, ABOVE: GIB})
    assert ram.size == RAM + GIB
    ram.judge()
    assert ram.size == RAM


def test_a_region_that_goes_and_comes_again_counts() -> None:
    ram = judged({0: RAM, ABOVE: GIB}, RAM)
    assert ram.size == RAM
    ram.share({0: RAM})
    ram.share({0: RAM, ABOVE: GIB})
    assert ram.size == RAM + GIB


def test_a_new_driver_is_judged_anew_and_keeps_the_figure_until_then() -> None:
    ram = judged({0: RAM, ABOVE: GIB}, RAM)
    ram.new_driver()
    assert (ram.judged, ram.total, ram.size) == (False, None, RAM)
    assert ram.needs_sample()
    ram.judge()
    assert (ram.judged, ram.size) == (False, RAM), "it has said nothing yet"


@pytest.mark.parametrize(("stated", "size"), [(GIB, GIB), (1, 1), (64 * GIB, RAM + GIB)])
def test_the_operators_word_counts_up_to_what_is_shared(stated: int, size: int) -> None:
    ram = judged({0: RAM, ABOVE: GIB}, RAM)
    ram.stated = stated
    assert ram.size == size
    ram.share({})
    assert ram.size == 0


SIZES = st.integers(1, 1 << 40)


@given(st.dictionaries(SIZES, SIZES, min_size=1, max_size=20), st.integers(0, 1 << 45))
def test_no_more_than_necessary_is_left_out(regions: dict[int, int], total: int) -> None:
    ram, most = judged(regions, total), total + max(total // SHARE, TOLERANCE)
    lowest = min(regions)
    assert regions[lowest] <= ram.size <= ram.shared
    assert lowest not in ram.left_out
    if ram.left_out:
        assert ram.shared > most
        assert ram.size <= most or ram.left_out == regions.keys() - {lowest}
        least = min(regions[start] for start in ram.left_out)
        assert ram.size + least > most, "the smallest of them could stay"
    else:
        assert ram.shared <= most or len(regions) == 1
