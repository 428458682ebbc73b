"""What counts as the guest's memory, and regions that cost nothing but themselves, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol.vhost_user import Request
from protocol.virtio_balloon import BalloonFeature
from tests.support.end_to_end import (
    LINUX,
    MIB,
    PAGE,
    ByHand,
    Host,
    LogLines,
    by_hand,
    fill,
    open_fds,
    refused,
    serving,
    told,
)
from tests.support.hostile.bad_requests import (
    LEFT_ALONE,
    Case,
    describe,
    descriptors,
    region,
    slot,
    table,
)
from tests.support.restarting.scenario import hosting
from tests.support.vms.judged import ABOVE, RAM, figures, give, with_more
from vhost_balloon.front_end.orders import SAMPLE_PATIENCE
from vhost_balloon.simulator.memory import GuestRam


async def order(host: Host, guest: ByHand, size: int, total: int) -> None:
    """Give an order, for which the daemon needs a sample."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.vm().device().order, size)
        await told(guest)
        give(guest, total)


@pytest.fixture
def shared() -> GuestRam:
    return with_more()


async def test_the_first_sample_of_a_driver_tells_what_it_has(
    tmp_path: Path, still_clock: MockClock, shared: GuestRam, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), shared) as guest:
        assert figures(host) == (2560, 2560, 2560)
        give(guest, RAM - 50 * MIB)
        await told(guest)
        assert figures(host) == (512, 512, 512)
        assert log_lines.having("vm1", "shares 2.5 GiB", "says that it has 462 MiB")


async def test_an_order_waits_for_the_first_sample(
    tmp_path: Path, still_clock: MockClock, shared: GuestRam
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), shared) as guest:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.vm().device().order, 448 * MIB)
            assert await told(guest) == 0
            give(guest, RAM - 50 * MIB)
        assert figures(host) == (512, 512, 448)
        assert (
            int.from_bytes((await guest.front_end.get_config())[:4], "little") == 64 * MIB // PAGE
        )


async def test_an_order_waits_no_longer_than_two_seconds(
    tmp_path: Path, autojump_clock: MockClock, shared: GuestRam
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), shared):
        started = trio.current_time()
        await host.vm().device().order(448 * MIB)
        assert trio.current_time() - started == pytest.approx(SAMPLE_PATIENCE)
        assert figures(host) == (2560, 2560, 448), "all that is known of it"


async def test_an_order_does_not_wait_if_nothing_can_be_left_out(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), RAM):
        with trio.fail_after(1):
            await host.vm().device().order(448 * MIB)
        assert figures(host) == (512, 512, 448)


async def test_memory_that_the_guest_put_online_since_counts_at_the_next_order(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), RAM) as guest:
        give(guest, RAM - 50 * MIB)
        await told(guest)
        await host.vm().device().order(448 * MIB)
        await guest.front_end.add_region(guest.ram.add(1024 * MIB, ABOVE))
        assert figures(host) == (1536, 1536, 1472), "as in QEMU, online or not"
        await order(host, guest, 448 * MIB, RAM - 50 * MIB)
        assert figures(host) == (512, 512, 448), "it is not online"
        await order(host, guest, 448 * MIB, 1536 * MIB - 60 * MIB)
        assert figures(host) == (1536, 1536, 448)


@pytest.mark.parametrize("by_table", [False, True])
async def test_ram_above_a_hole_is_known_by_its_file(
    tmp_path: Path, still_clock: MockClock, by_table: bool
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), RAM) as guest:
        (ram,) = guest.ram.regions
        above = (ABOVE, RAM // 2, 1 << 46, RAM // 2)
        if by_table:
            low = region(ram.start, ram.region.size, ram.region.user_address)
            payload = table(low, region(*above))
            await guest.front_end.command(Request.SET_MEM_TABLE, payload, [ram.fd, ram.fd])
        else:
            await guest.front_end.command(Request.ADD_MEM_REG, slot(*above), [ram.fd])
        give(guest, RAM - 50 * MIB)
        await told(guest)
        assert figures(host) == (768, 768, 768)


async def test_without_deflate_on_oom_the_balloon_is_part_of_what_the_guest_has(
    tmp_path: Path, still_clock: MockClock
) -> None:
    features = LINUX & ~int(BalloonFeature.DEFLATE_ON_OOM)
    ram = GuestRam.create(RAM)
    ram.add(RAM, ABOVE)
    async with serving(tmp_path) as host, by_hand(host.path(), ram, features=features) as guest:
        held = (RAM // PAGE).to_bytes(4, "little")
        await guest.front_end.set_config(slice(4, 8), held)
        give(guest, RAM - 58 * MIB)
        await told(guest)
        assert figures(host) == (1024, 512, 1024)


@pytest.mark.parametrize("where", ["option", "file"])
async def test_the_operators_word_is_not_judged(
    tmp_path: Path, still_clock: MockClock, shared: GuestRam, where: str
) -> None:
    file = tmp_path / "vm1.toml"
    file.write_text('memory = "1G"\n')
    word = "--memory=1G" if where == "option" else f"--config={file}"
    async with serving(tmp_path, word) as host, by_hand(host.path(), shared) as guest:
        give(guest, RAM - 50 * MIB)
        await told(guest)
        assert figures(host) == (1024, 1024, 1024)
        await host.vm().device().order(448 * MIB)
        assert figures(host) == (1024, 1024, 448)


async def test_a_judgement_outlives_the_process(tmp_path: Path) -> None:
    """As does a region that came since, and an untouched one."""
    with descriptors(["read-only"]) as (fd,):
        async with hosting(tmp_path) as host, by_hand(host.path(), RAM) as guest:
            give(guest, RAM - 50 * MIB)
            await guest.front_end.add_region(guest.ram.add(1024 * MIB, ABOVE))
            host.ask("balloon", value=448 * MIB)
            assert host.vm()["guest-memory"] == 512 * MIB
            await guest.front_end.add_region(guest.ram.add(256 * MIB, 2 * ABOVE))
            await guest.front_end.command(Request.ADD_MEM_REG, slot(3 * ABOVE, 8 * MIB), [fd])
            before = [host.vm()[name] for name in ("guest-memory", "actual", "target", "regions")]
            assert before[0] == 776 * MIB
            host.manager.kill()
            await guest.front_end.get_config()
            after = [host.vm()[name] for name in ("guest-memory", "actual", "target", "regions")]
            assert after == before
            assert before[-1][-1]["backing"] == "untouched"


# Regions whose file cannot be used


@pytest.mark.parametrize("case", LEFT_ALONE, ids=describe)
async def test_a_bad_region_costs_itself(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines, case: Case
) -> None:
    request, payload, kinds, text = case
    start = int.from_bytes(payload[8:16], "little")
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        before = open_fds()
        with descriptors(kinds) as fds:
            await guest.front_end.command(request, payload, fds)  # raises if it is refused
        assert open_fds() == before
        assert log_lines.having("vm1", f"at guest address {start:#x} is left alone", text)
        await guest.inflate([start // PAGE])
        await guest.report((start, PAGE))
        assert refused(host.vm()) == {"untouched-region": 2 * PAGE}
        assert host.vm().statistics().regions[-1].backing == "untouched"
        await guest.works(host.vm())
        await guest.front_end.command(Request.REM_MEM_REG, payload)
        assert len(host.vm().statistics().regions) == 1
        await guest.works(host.vm())


async def test_a_table_with_a_bad_region(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        (ram,) = guest.ram.regions
        good = region(ram.start, ram.region.size, ram.region.user_address)
        with descriptors(["read-only"]) as (fd,):
            payload = table(good, region(ABOVE, 8 * MIB, 1 << 46))
            await guest.front_end.command(Request.SET_MEM_TABLE, payload, [ram.fd, fd])
        assert [r.backing for r in host.vm().statistics().regions] == ["tmpfs", "untouched"]
        await guest.works(host.vm())


# One connection, several devices


async def replug(guest: ByHand) -> None:
    """Unplug the device and plug another, as QEMU does on the same chardev."""
    channel = guest.front_end._channel
    await guest.stop()
    await guest.front_end.handshake()
    assert channel is not None
    channel.close()


async def test_a_device_that_is_unplugged_and_plugged_again(
    tmp_path: Path, still_clock: MockClock
) -> None:
    """QEMU keeps the connection. It does not remove the regions, and gives them again."""
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        before = open_fds()
        for _ in range(3):
            vm = host.vm()
            give(guest, 60 * MIB)
            await told(guest)
            await vm.device().order(48 * MIB)
            await guest.front_end.set_config(slice(4, 8), (4096).to_bytes(4, "little"))
            assert figures(host) == (64, 48, 48)
            await guest.works(vm)
            await replug(guest)
            now = vm.statistics()
            assert (now.guest_memory, now.actual, now.target, now.regions) == (0, None, None, ())
            assert (now.features, now.stats, now.driver_ready) == (0, {}, False)
            assert await guest.front_end.get_u64(Request.GET_STATUS) == 0
            assert await guest.front_end.get_config() == bytes(16)
            guest.fresh()
            await guest.start()
            fill(guest.ram, 4 * MIB, PAGE)
            assert figures(host) == (64, 64, 64)
            await guest.works(vm)
        assert open_fds() == before


async def test_a_new_device_outlives_the_process(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        host.ask("balloon", value=48 * MIB)
        await replug(guest)
        host.manager.kill()
        assert await guest.front_end.get_config() == bytes(16)
        assert (host.vm()["guest-memory"], host.vm()["regions"]) == (0, [])
        guest.fresh()
        await guest.start()
        host.manager.kill()
        await guest.inflate([5000])
        assert host.vm()["guest-memory"] == 64 * MIB
