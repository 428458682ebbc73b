"""Real guests: which memory an order means, beside QEMU's own balloon.

QEMU counts RAM and DIMMs. The daemon is told of all memory that is shared with it, and learns from
the guest's statistics how much of it the guest has. Each module fixture is one guest, whose tests
run in order; run with -s, the module prints what was seen.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.rig.devices import memory as devices
from tests.rig.inside import workload
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.waiting import wait_until
from tests.support.vms.compared import BALLOONS, MOSTLY_OURS, Figures, Side, with_balloon
from tests.support.vms.guests import corruption

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

RAM: Final = 512 * MiB

Record = Callable[[str, Side], Figures]


@pytest.fixture(scope="module")
def record() -> Iterator[Record]:
    """Notes the figures of a side in a situation; all are printed as a table at the end."""
    rows: dict[str, dict[str, Figures]] = {}

    def note(situation: str, side: Side) -> Figures:
        figures = side.figures()
        rows.setdefault(situation, {})[side.kind] = figures
        return figures

    yield note
    print("\n" + _table(rows))


def _table(rows: dict[str, dict[str, Figures]]) -> str:
    """The figures in MiB, as Markdown."""
    lines = [
        "| situation | balloon | actual | in the balloon | guest free | host resident |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for situation, sides in rows.items():
        for kind, seen in sides.items():
            sizes = (seen.actual, seen.balloon, seen.free, seen.resident)
            cells = [situation, kind, *(f"{size / MiB:.0f}" for size in sizes)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def assert_survives_pause(side: Side) -> None:
    """The balloon stays while the machine is paused and goes on."""
    before = side.balloon(), side.actual()
    side.guest.stop()
    side.guest.cont()
    side.settle()
    assert (side.balloon(), side.actual()) == before


def assert_survives_reset(side: Side) -> None:
    """The balloon is filled again after a reset of the machine.

    QEMU's does that too, but is not tried: resets take the larger part of the time of these tests.
    """
    before = side.balloon()
    if side.is_ours:
        side.guest.reset()
        wait_until(lambda: side.balloon() == before, 30)
        side.settle()
        assert side.balloon() == before
    assert corruption(side.guest) == []


# virtio-mem


@pytest.fixture(scope="module", params=BALLOONS)
def virtio_mem(request: pytest.FixtureRequest) -> Iterator[Side]:
    """512 MiB beside an empty virtio-mem device of 2 GiB."""
    device = devices.virtio_mem(2 * GiB)
    kernel = devices.VIRTIO_MEM_KERNEL
    memory = Memory(RAM, slots=2)
    with with_balloon(
        request.param, memory=memory, qemu_arguments=device, kernel_arguments=kernel
    ) as side:
        yield side


def test_an_empty_virtio_mem_device_is_no_memory(virtio_mem: Side, record: Record) -> None:
    assert virtio_mem.actual() == RAM
    virtio_mem.order(448 * MiB)
    seen = record("512 MiB, virtio-mem of 2 GiB empty; order 448 MiB", virtio_mem)
    assert (seen.actual, seen.balloon) == (448 * MiB, 64 * MiB)
    assert seen.free > 200 * MiB
    assert_survives_pause(virtio_mem)


def test_what_is_plugged_of_virtio_mem_is_not_the_balloons(
    virtio_mem: Side, record: Record
) -> None:
    devices.resize_virtio_mem(virtio_mem.guest, 512 * MiB)
    virtio_mem.settle()
    seen = record("then 512 MiB of it plugged", virtio_mem)
    assert seen.balloon == 64 * MiB  # only an order changes it
    virtio_mem.wait_sample()
    for size in (896 * MiB, 384 * MiB):
        virtio_mem.order(size)
        seen = record(f"then order {size // MiB} MiB", virtio_mem)
        assert RAM - seen.balloon == seen.actual == min(size, RAM)
    assert_survives_pause(virtio_mem)
    assert_survives_reset(virtio_mem)


def test_virtio_mem_that_is_plugged_in_full(virtio_mem: Side, record: Record) -> None:
    """The daemon cannot tell it from a DIMM; QEMU does not count it either."""
    devices.resize_virtio_mem(virtio_mem.guest, 2 * GiB)
    virtio_mem.settle()
    assert virtio_mem.balloon() == 128 * MiB
    virtio_mem.wait_sample()
    virtio_mem.order(2432 * MiB)
    seen = record("then all of it plugged; order 2432 MiB", virtio_mem)
    assert seen.balloon == (128 * MiB if virtio_mem.is_ours else 0)
    virtio_mem.order(4 * GiB)
    assert virtio_mem.balloon() == 0


def test_virtio_mem_that_is_unplugged(virtio_mem: Side, record: Record) -> None:
    devices.resize_virtio_mem(virtio_mem.guest, 0)
    virtio_mem.wait_sample()
    virtio_mem.order(448 * MiB)
    seen = record("then all of it unplugged; order 448 MiB", virtio_mem)
    assert (seen.actual, seen.balloon) == (448 * MiB, 64 * MiB)


# DIMMs


@pytest.fixture(scope="module", params=BALLOONS)
def slot(request: pytest.FixtureRequest) -> Iterator[Side]:
    """512 MiB and a slot for a DIMM, which the guest puts online only when it is told to."""
    kernel = devices.STAYS_OFFLINE
    memory = Memory(RAM, slots=1)
    with with_balloon(request.param, memory=memory, kernel_arguments=kernel) as side:
        yield side


def test_a_plugged_dimm_takes_nothing_from_the_guest(slot: Side, record: Record) -> None:
    slot.order(448 * MiB)
    devices.plug_dimm(slot.guest)
    slot.settle()
    seen = record("order 448 MiB, then a DIMM of 1 GiB plugged, offline", slot)
    assert (seen.actual, seen.balloon) == (448 * MiB + GiB, 64 * MiB)
    assert seen.free > 200 * MiB
    assert_survives_pause(slot)
    assert_survives_reset(slot)


def test_an_order_does_not_count_a_dimm_that_is_offline(slot: Side, record: Record) -> None:
    """QEMU does, and would take all that the guest has: it gets a harmless order."""
    slot.wait_sample()
    size = 448 * MiB if slot.is_ours else 1472 * MiB
    slot.order(size)
    seen = record("then a new order, 448 MiB (QEMU: 1472 MiB)", slot)
    assert (seen.actual, seen.balloon) == (size, 64 * MiB)
    assert seen.free > 200 * MiB


def test_an_order_counts_a_dimm_that_is_online(slot: Side, record: Record) -> None:
    devices.online(slot.guest)
    slot.wait_sample()
    slot.order(1468 * MiB)
    seen = record("then the DIMM online; order 1468 MiB", slot)
    assert (seen.actual, seen.balloon) == (1468 * MiB, 68 * MiB)


def test_an_unplugged_dimm_leaves_the_balloon(slot: Side, record: Record) -> None:
    # Few pages of the balloon are in the DIMM: each moves, some repeatedly, by two requests.
    devices.unplug_dimm(slot.guest)
    slot.settle()
    seen = record("then the DIMM unplugged", slot)
    assert (seen.actual, seen.balloon) == (444 * MiB, 68 * MiB)
    assert_survives_pause(slot)
    slot.order(384 * MiB)
    assert (slot.actual(), slot.balloon()) == (384 * MiB, 128 * MiB)


# Memory that is not the guest's RAM


@pytest.fixture(scope="module", params=MOSTLY_OURS)
def ivshmem(request: pytest.FixtureRequest) -> Iterator[Side]:
    """512 MiB beside 256 MiB of ivshmem, and a slot for a DIMM, which the guest uses at once."""
    device, memory = devices.ivshmem(256 * MiB), Memory(RAM, slots=1)
    with with_balloon(request.param, memory=memory, qemu_arguments=device) as side:
        yield side


def test_ivshmem_is_no_memory(ivshmem: Side, record: Record) -> None:
    assert ivshmem.actual() == RAM
    ivshmem.order(448 * MiB)
    seen = record("512 MiB, ivshmem of 256 MiB; order 448 MiB", ivshmem)
    assert (seen.actual, seen.balloon) == (448 * MiB, 64 * MiB)
    assert_survives_pause(ivshmem)
    assert_survives_reset(ivshmem)
    assert ivshmem.actual() == 448 * MiB


def test_ivshmem_that_is_plugged_takes_nothing_from_the_guest(
    ivshmem: Side, record: Record
) -> None:
    ivshmem.order(448 * MiB)
    devices.plug_ivshmem(ivshmem.guest, 128 * MiB)
    ivshmem.settle()
    seen = record("then 128 MiB more of ivshmem plugged", ivshmem)
    assert seen.balloon == 64 * MiB
    ivshmem.order(384 * MiB)
    assert (ivshmem.actual(), ivshmem.balloon()) == (384 * MiB, 128 * MiB)
    devices.unplug_ivshmem(ivshmem.guest)
    ivshmem.settle()
    assert (ivshmem.actual(), ivshmem.balloon()) == (384 * MiB, 128 * MiB)


def test_a_dimm_beside_ivshmem_counts(ivshmem: Side, record: Record) -> None:
    before = ivshmem.balloon()
    devices.plug_dimm(ivshmem.guest)
    ivshmem.settle()
    assert ivshmem.balloon() == before
    ivshmem.wait_sample()
    ivshmem.order(1280 * MiB)
    seen = record("then a DIMM of 1 GiB plugged, online; order 1280 MiB", ivshmem)
    assert (seen.actual, seen.balloon) == (1280 * MiB, 256 * MiB)


def test_memory_that_the_operator_states_is_not_judged() -> None:
    with with_balloon("daemon", "--memory=768M", qemu_arguments=devices.ivshmem(256 * MiB)) as side:
        assert side.actual() == 768 * MiB
        side.order(704 * MiB)
        assert (side.actual(), side.balloon()) == (704 * MiB, 64 * MiB)
        side.wait_sample()
        side.order(GiB)
        assert (side.actual(), side.balloon()) == (768 * MiB, 0)


@pytest.fixture(scope="module")
def files() -> Iterator[dict[str, Path]]:
    """Contents of NVDIMMs: on a disk's file system, on tmpfs, one not shared, one only to read."""
    with ExitStack() as stack:
        on_disk, on_tmpfs = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            for folder in ("/var/tmp", "/dev/shm")
        )
        found = {
            "disk": on_disk / "disk",
            "tmpfs": on_tmpfs / "tmpfs",
            "private": on_disk / "private",
            "unarmed": on_disk / "unarmed",
        }
        for file in found.values():
            file.write_bytes(os.urandom(MiB) * 128)
        os.sync()  # a file system may allocate blocks only then
        yield found


@pytest.fixture(scope="module", params=MOSTLY_OURS)
def nvdimms(request: pytest.FixtureRequest, files: dict[str, Path]) -> Iterator[Side]:
    """512 MiB beside four NVDIMMs of 128 MiB."""
    flags = {"private": {"share": False}, "unarmed": {"unarmed": True}}
    arguments: tuple[str, ...] = ()
    for name, file in files.items():
        arguments += devices.nvdimm(name, file, **flags.get(name, {}))
    memory = Memory(RAM, slots=len(files))
    with with_balloon(request.param, memory=memory, qemu_arguments=arguments) as side:
        yield side


def test_nvdimms_are_no_memory_and_stay_as_they_are(
    nvdimms: Side, files: dict[str, Path], record: Record
) -> None:
    before = {name: _contents(file) for name, file in files.items()}
    assert nvdimms.actual() == RAM
    nvdimms.order(448 * MiB)
    seen = record("512 MiB, four NVDIMMs of 128 MiB; order 448 MiB", nvdimms)
    assert (seen.actual, seen.balloon) == (448 * MiB, 64 * MiB)
    workload.fill(nvdimms.guest, 200 * MiB)
    workload.free(nvdimms.guest)
    wait_until(lambda: nvdimms.guest.resident() < seen.resident + 100 * MiB, 20)
    assert_survives_pause(nvdimms)
    assert_survives_reset(nvdimms)
    assert nvdimms.actual() == 448 * MiB
    assert {name: _contents(file) for name, file in files.items()} == before


def _contents(file: Path) -> tuple[str, int]:
    """The digest of a file, and its blocks."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return digest, file.stat().st_blocks
