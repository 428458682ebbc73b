"""The simulated guest against a toy back end: its driver, and its machine's life cycle."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
import trio.testing

from protocol.virtio_balloon import Queue, StatTag
from tests.support.fakes.toy_back_end import OFFERED, PROTOCOL, QUIET, ToyBackEnd, booted
from vhost_balloon.simulator.allocator import GuestOutOfMemory
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.guest import SimulatedGuest, running_guest
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import DriverOptions
from vhost_balloon.simulator.wire import BackEndGone

MIB = 1 << 20
STATS, REPORTING = 1 << 1, 1 << 5


async def test_a_guest_starts_only_the_rings_of_its_features() -> None:
    options = DriverOptions(features=0x1_1000_0000 | STATS | REPORTING, report_delay=None)
    async with booted(options) as (guest, back_end):
        kicked = [m.payload[0] for m in back_end.messages if m.request == 12]
        assert kicked == [0, 1, 2, 3]
        assert guest.driver.negotiated == 0x1_1000_0022


async def test_inflating_is_256_descending_pfns_then_actual_then_the_next() -> None:
    async with booted() as (guest, back_end):
        back_end.messages.clear()
        back_end.set_target(300)
        await guest.driver.wait_balloon(300)
        first, second = back_end.rings[0].done
        assert [(length, flags) for _, length, flags in first + second] == [(1024, 0), (176, 0)]
        # Both requests use the same buffer, so only the second one's PFNs are still there.
        pfns = struct.unpack("<44I", back_end.read_guest(second[0][0], 176))
        top = 16 * MIB >> 12
        assert pfns == tuple(range(top - 257, top - 301, -1))
        assert back_end.requests[:4] == [24, 25, 24, 25]
        assert struct.unpack("<I", back_end.config[4:8]) == (300,)


async def test_deflating_returns_pages_to_the_guest() -> None:
    async with booted() as (guest, back_end):
        free = guest.allocator.free
        back_end.set_target(1000)
        await guest.driver.wait_balloon(1000)
        assert guest.allocator.free == free - 1000 * 4096
        back_end.set_target(0)
        await guest.driver.wait_balloon(0)
        assert guest.allocator.free == free
        assert [chain[0][1] for chain in back_end.rings[1].done] == [1024, 1024, 1024, 928]


async def test_the_statistics_buffer_is_available_before_the_device_starts() -> None:
    async with booted() as (guest, back_end):
        assert back_end.rings[2].done == []
        back_end.process(2)
        [buffer] = back_end.rings[2].done[0]
        assert buffer[1:] == (160, 0)
        await guest.touch(2 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert guest.driver.rings[Queue.STATS].available_index == 2
        back_end.process(2)
        await guest.touch(4096)
        await trio.testing.wait_all_tasks_blocked()
        data = back_end.read_guest(buffer[0], 160)
        values = {tag: value for tag, value in struct.iter_unpack("<HQ", data)}
        assert sorted(values) == list(range(16))
        assert values[5] == 16 * MIB
        assert values[4] == values[6] == guest.allocator.free == 13 * MIB - 4096
        assert values[3] == 513


@pytest.mark.parametrize("indirect", [False, True])
async def test_free_blocks_are_reported_in_descending_chains_of_32(indirect: bool) -> None:
    features = OFFERED if indirect else OFFERED & ~(1 << 28)
    options = DriverOptions(features=features, report_delay=None)
    async with booted(options, GuestRam.create(200 * MIB)) as (guest, back_end):
        assert await guest.driver.report() == 196 * MIB
        chains = back_end.rings[4].done
        assert [len(chain) for chain in chains] == [32, 17]
        buffers = [buffer for chain in chains for buffer in chain]
        assert [address for address, _, _ in buffers] == list(range(196 * MIB, 0, -4 * MIB))
        assert {length for _, length, _ in buffers} == {4 * MIB}
        assert all(flags & 2 for _, _, flags in buffers)
        assert await guest.driver.report() == 0
        await guest.touch(3 * MIB + 4096)
        assert await guest.free() == 3 * MIB + 4096
        assert await guest.driver.report() == 4 * MIB


async def test_blocks_are_not_free_while_the_device_has_them() -> None:
    async with booted() as (guest, back_end):
        back_end.hold.add(4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.driver.report)
            await trio.testing.wait_all_tasks_blocked()
            assert guest.allocator.free == 3 * MIB
            nursery.start_soon(guest.touch, 4 * MIB)
            await trio.testing.wait_all_tasks_blocked()
            assert guest.in_use == (1 + 3) * MIB
            back_end.hold.clear()
            back_end.process(4)
        assert guest.in_use == 5 * MIB


async def test_reporting_starts_automatically(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # real descriptors need some real time
    async with booted(DriverOptions()) as (_, back_end):
        await back_end.finished(4)
        assert trio.current_time() >= 2
        assert [len(chain) for chain in back_end.rings[4].done] == [3]


async def test_hints_are_framed_by_the_command_and_stop() -> None:
    async with booted() as (guest, back_end):
        assert await guest.driver.hint(0x11) == 12 * MIB
        chains = back_end.rings[3].done
        assert [[(length, flags) for _, length, flags in chain] for chain in chains] == [
            [(4, 0)],
            *[[(4 * MIB, 2)]] * 3,
            [(4, 0)],
        ]


@pytest.mark.parametrize(
    ("poison", "accepted", "field"), [(None, 0, 0), (0, 16, 0), (0xAAAAAAAA, 16, 0xAAAAAAAA)]
)
async def test_the_poison_value_comes_before_set_features(
    poison: int | None, accepted: int, field: int
) -> None:
    options = DriverOptions(poison_value=poison, report_delay=None)
    async with booted(options) as (guest, back_end):
        assert guest.driver.negotiated & 16 == accepted
        written = 25 in back_end.requests
        assert written == (poison is not None)
        if written:
            assert back_end.requests.index(25) < back_end.requests.index(2)
        assert struct.unpack("<I", back_end.config[12:16]) == (field,)
        await guest.touch(MIB)
        await guest.free()
        content = back_end.read_guest(MIB, 4096)
        if poison is not None:
            assert content == struct.pack("<I", poison) * 1024


async def test_touched_memory_is_resident_and_lost_pages_are_detected() -> None:
    async with booted() as (guest, _):
        before = guest.resident()
        await guest.touch(4 * MIB + 1)
        assert guest.resident() - before == 4 * MIB + 4096
        assert guest.in_use == 5 * MIB + 4096
        assert await guest.verify() == 0
        guest.ram.write(2 * MIB, b"?")
        assert await guest.verify() == 1
        assert await guest.free(MIB) == MIB
        assert guest.resident() - before == 4 * MIB + 4096, "the host is not told"


async def test_memory_pressure_takes_pages_out_of_the_balloon() -> None:
    async with booted() as (guest, back_end):
        back_end.set_target(15 * 256)
        await guest.driver.wait_balloon(15 * 256)
        back_end.hold.add(0)  # the driver would inflate again, towards the target
        await guest.touch(2 * MIB)
        assert guest.in_use == 3 * MIB
        assert len(back_end.rings[1].done) >= 2
        with pytest.raises(GuestOutOfMemory):
            await guest.touch(16 * MIB)


async def test_cont_starts_the_rings_at_the_bases_of_stop() -> None:
    async with booted() as (guest, back_end):
        back_end.set_target(300)
        await guest.driver.wait_balloon(300)
        bases = await guest.stop()
        assert bases[0] == 2
        back_end.messages.clear()
        back_end.set_target(600)
        await trio.testing.wait_all_tasks_blocked()
        assert back_end.messages == [], "a stopped guest sends nothing"
        await guest.cont()
        bases_sent = [struct.unpack("<II", m.payload) for m in back_end.messages if m.request == 10]
        assert dict(bases_sent) == bases
        await guest.driver.wait_balloon(600)


async def test_a_request_pending_at_stop_is_finished_after_cont() -> None:
    async with booted() as (guest, back_end):
        back_end.hold.add(0)
        back_end.set_target(10)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert guest.driver.rings[Queue.INFLATE].available_index == 1
        assert (await guest.stop())[0] == 0
        back_end.hold.clear()
        await guest.cont()
        await guest.driver.wait_balloon(10)


async def test_reboot_starts_at_base_0_with_an_empty_balloon() -> None:
    async with booted() as (guest, back_end):
        await guest.touch(4 * MIB)
        back_end.set_target(300)
        await guest.driver.wait_balloon(300)
        resident = guest.resident()
        back_end.config[0:4] = bytes(4)
        back_end.messages.clear()
        await guest.reboot()
        assert guest.driver.balloon_pages == 0
        assert guest.allocator.free == 15 * MIB
        assert guest.resident() == resident, "a reboot alone returns no memory"
        assert all(m.payload[4:] == bytes(4) for m in back_end.messages if m.request == 10)
        assert {1, 15, 16, 37} & set(back_end.requests) == set()


async def test_a_reboot_in_the_middle_of_requests_leaves_the_connection_in_step() -> None:
    async with booted() as (guest, back_end):
        for pages in range(200, 3000, 400):
            back_end.set_target(pages)
            for _ in range(pages // 100):
                await trio.lowlevel.checkpoint()
            await guest.reboot()
        await guest.driver.wait_balloon(2600)


async def test_unload_empties_the_balloon_and_load_fills_it_again() -> None:
    async with booted() as (guest, back_end):
        back_end.set_target(1000)
        await guest.driver.wait_balloon(1000)
        await guest.unload()
        assert back_end.config[4:8] == bytes(4)
        assert guest.allocator.free == 15 * MIB
        assert back_end.requests[-5:] == [11] * 5
        await guest.load()
        await guest.driver.wait_balloon(1000)


async def test_plugged_memory_is_sent_to_the_back_end_and_used() -> None:
    async with booted() as (guest, back_end):
        await guest.plug(8 * MIB, 32 * MIB)
        assert [region[:2] for region in back_end.regions] == [
            (0, 16 * MIB),
            (32 * MIB, 8 * MIB),
        ]
        await guest.touch(20 * MIB)
        assert guest.ram.is_resident(32 * MIB, 4 * MIB)


async def test_a_back_end_that_goes_away_is_noticed_and_not_fatal() -> None:
    theirs, ours = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    back_end = ToyBackEnd(ours, offered=OFFERED, protocol=PROTOCOL)
    with GuestRam.create(16 * MIB) as ram:
        async with FrontEnd(theirs, ram) as front_end, trio.open_nursery() as nursery:
            serving = trio.CancelScope()

            async def serve() -> None:
                with serving:
                    await back_end.serve()

            nursery.start_soon(serve)
            guest = SimulatedGuest(front_end, nursery, QUIET)
            await guest.boot()
            serving.cancel()
            await trio.testing.wait_all_tasks_blocked()
            back_end.close()
            await guest.back_end_gone.wait()
            with pytest.raises(BackEndGone):
                await guest.driver.wait_balloon(1)
            with pytest.raises(BackEndGone):
                await front_end.get_config()
            nursery.cancel_scope.cancel()


async def test_running_guest_connects_to_a_path(tmp_path: str) -> None:
    path = f"{tmp_path}/vm.sock"
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        await listener.bind(path)
        listener.listen()

        async def accept() -> None:
            sock, _ = await listener.accept()
            back_end = ToyBackEnd(sock, offered=OFFERED, protocol=PROTOCOL)
            await back_end.serve()
            back_end.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            async with running_guest(path, 8 * MIB, QUIET) as guest:
                assert guest.ram.size == 8 * MIB
                assert await guest.driver.report() == 4 * MIB


async def test_the_page_cache_makes_room_for_applications_and_the_balloon() -> None:
    async with booted() as (guest, back_end):
        await guest.read_files(100 * MIB)
        assert guest.cached > 14 * MIB
        available = guest.allocator.free + guest.cached
        assert guest.statistics()[int(StatTag.AVAIL)] == available
        assert guest.statistics()[int(StatTag.CACHES)] == guest.cached
        back_end.set_target(1024)
        await guest.driver.wait_balloon(1024)
        await guest.touch(8 * MIB)
        assert guest.allocator.free + guest.cached == available - 4 * MIB - 8 * MIB
        assert await guest.verify() == 0
