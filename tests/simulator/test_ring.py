"""The driver's side of a ring. The tests write the device's used elements."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from vhost_balloon.simulator.events import EventFd
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.ring import DriverRing, RingFull, Used

MIB = 1 << 20


def finish(ring: DriverRing, head: int, length: int = 0) -> None:
    index = ring.used_index
    element = head.to_bytes(4, "little") + length.to_bytes(4, "little")
    ring.ram.write(ring.used + 4 + 8 * (index % ring.size), element)
    ring.ram.write_word(ring.used + 2, (index + 1) & 0xFFFF)
    if ring.call_event is not None:
        ring.call_event.signal()


def test_the_bytes_of_a_chain_in_the_ring() -> None:
    with GuestRam.create(MIB) as ram:
        ring = DriverRing(ram, 8)
        head = ring.add([(0x1122334455667788, 0x400, False), (0xA000, 0x10, True)])
        assert head == 0
        assert ram.read(ring.descriptors, 32) == bytes.fromhex(
            "8877665544332211 00040000 0100 0100"  # device reads 0x400 bytes, NEXT, next is 1
            "00a0000000000000 10000000 0200 0000"  # device writes 0x10 bytes, end
        )
        assert ram.read(ring.available, 6) == bytes.fromhex("0000 0100 0000")


def test_an_indirect_chain_takes_one_descriptor() -> None:
    with GuestRam.create(MIB) as ram:
        ring = DriverRing(ram, 4)
        buffers = [(0x1000 * n, 0x1000, True) for n in range(1, 7)]
        ring.add(buffers, indirect=True)
        descriptor = ram.read(ring.descriptors, 16)
        table = int.from_bytes(descriptor[:8], "little")
        assert descriptor[8:] == bytes.fromhex("60000000 0400 0000")
        assert ram.read(table, 16) == bytes.fromhex("0010000000000000 00100000 0300 0100")
        assert ram.read(table + 80, 16) == bytes.fromhex("0060000000000000 00100000 0200 0000")


def test_a_full_ring_is_an_error_and_a_finished_request_makes_room() -> None:
    with GuestRam.create(MIB) as ram:
        ring = DriverRing(ram, 4)
        heads = [ring.add([(0, 1, False), (0, 1, False)]) for _ in range(2)]
        with pytest.raises(RingFull):
            ring.add([(0, 1, False)])
        finish(ring, heads[1], 7)
        assert ring.pop_used() == [Used(heads[1], 7)]
        ring.add([(0, 1, False)])


def test_indexes_wrap_at_65536() -> None:
    with GuestRam.create(MIB) as ram:
        ring = DriverRing(ram, 8)
        ring.reset(0xFFFE)
        for _ in range(20):
            finish(ring, ring.add([(0, 1, False)]))
            assert len(ring.pop_used()) == 1
        assert ring.available_index == ring.used_index == (0xFFFE + 20) % 65536


async def test_submit_waits_for_its_own_request_and_keeps_the_others() -> None:
    with GuestRam.create(MIB) as ram, EventFd() as call:
        ring = DriverRing(ram, 8)
        ring.call_event = call
        other = ring.add([(0, 1, False)])
        finished: list[Used] = []

        async def submit() -> None:
            finished.append(await ring.submit([(0, 2, False)]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            await trio.testing.wait_all_tasks_blocked()
            finish(ring, other)
            await trio.testing.wait_all_tasks_blocked()
            assert finished == []
            finish(ring, other + 1)
        assert finished == [Used(other + 1, 0)]
        assert await ring.wait_used() == [Used(other, 0)]
