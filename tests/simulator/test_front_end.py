"""The simulated front end against a toy back end: the order and the bytes of its messages.

The expected bytes are typed from the vhost-user specification; the order of messages comes from a
log of QEMU 11.1.
"""

from __future__ import annotations

import socket
import struct

import pytest
import trio
import trio.testing

from tests.support.fakes.toy_back_end import PROTOCOL, ToyBackEnd, attached
from vhost_balloon.simulator.connection import Refused, UnexpectedReply
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.ring import DriverRing
from vhost_balloon.simulator.wire import BackEndGone

MIB = 1 << 20


def sent(back_end: ToyBackEnd) -> list[str]:
    """Return each message as hex: request, flags, size, payload, and the number of descriptors."""
    return [
        struct.pack("<III", m.request, m.flags, len(m.payload)).hex(" ", 4)
        + (f" {m.payload.hex()}" if m.payload else "")
        + (f" +{len(m.fds)}" if m.fds else "")
        for m in back_end.messages
    ]


async def test_the_handshake_has_qemus_messages() -> None:
    async with attached() as (front_end, back_end):
        await front_end.handshake()
        await front_end.get_u64(1)  # its reply proves that all previous messages were received
        queues = [
            message
            for index in range(5)
            for message in (
                f"0d000000 01000000 08000000 0{index}00000000000000 +1",  # SET_VRING_CALL
                f"0e000000 01000000 08000000 0{index}00000000000000 +1",  # SET_VRING_ERR
            )
        ]
        assert sent(back_end)[:-1] == [
            "01000000 01000000 00000000",  # GET_FEATURES
            "0f000000 01000000 00000000",  # GET_PROTOCOL_FEATURES
            "10000000 01000000 08000000 29a2010000000000",  # SET_PROTOCOL_FEATURES
            "11000000 01000000 00000000",  # GET_QUEUE_NUM
            "24000000 01000000 00000000",  # GET_MAX_MEM_SLOTS
            "15000000 09000000 00000000 +1",  # SET_BACKEND_REQ_FD, need_reply
            "03000000 01000000 00000000",  # SET_OWNER
            "01000000 01000000 00000000",  # GET_FEATURES
            *queues,
        ]
        assert (front_end.queue_num, front_end.memory_slots) == (5, 509)


async def test_a_device_start_has_qemus_messages() -> None:
    async with attached(GuestRam.create(4 * MIB)) as (front_end, back_end):
        await front_end.handshake()
        ring = DriverRing(front_end.ram, 64)
        assert (ring.descriptors, ring.available, ring.used) == (0x1000, 0x1400, 0x1484)
        await front_end.get_u64(1)
        back_end.messages.clear()
        await front_end.start_device({3: ring}, features=0x1_1000_0021)
        await front_end.get_u64(1)
        assert sent(back_end)[:-1] == [
            "02000000 01000000 08000000 2100005001000000",  # SET_FEATURES, with bit 30
            "28000000 01000000 00000000",  # GET_STATUS
            "27000000 01000000 08000000 0800000000000000",  # SET_STATUS: FEATURES_OK
            "25000000 09000000 28000000 0000000000000000"  # ADD_MEM_REG, need_reply: padding
            "00000000000000000000400000000000"  # guest address, size
            "000000005a7f00000000000000000000 +1",  # user address, offset
            "08000000 01000000 08000000 0300000040000000",  # SET_VRING_NUM
            "0a000000 01000000 08000000 0300000000000000",  # SET_VRING_BASE
            "09000000 01000000 28000000 0300000000000000"  # SET_VRING_ADDR: index, flags
            "001000005a7f0000841400005a7f000000140000"  # descriptors, used, available
            "5a7f00000000000000000000",  # log
            "0c000000 01000000 08000000 0300000000000000 +1",  # SET_VRING_KICK
            "0d000000 01000000 08000000 0300000000000000 +1",  # SET_VRING_CALL
            *(
                f"12000000 09000000 08000000 0{index}00000001000000"  # SET_VRING_ENABLE
                for index in range(5)
            ),
            *(
                f"0d000000 01000000 08000000 0{index}00000000000000 +1"  # SET_VRING_CALL
                for index in range(5)
            ),
        ]


async def test_stop_disables_all_queues_and_gets_the_bases_of_started_ones() -> None:
    async with attached() as (front_end, back_end):
        await front_end.handshake()
        rings = {index: DriverRing(front_end.ram) for index in (0, 1, 3)}
        await front_end.start_device(rings, features=0)
        back_end.messages.clear()
        assert await front_end.stop_device() == {0: 0, 1: 0, 3: 0}
        assert sent(back_end)[-8:] == [
            *(f"12000000 09000000 08000000 0{index}00000000000000" for index in range(5)),
            *(f"0b000000 01000000 08000000 0{index}00000000000000" for index in (0, 1, 3)),
        ]


async def test_memory_is_sent_once_and_removed_without_a_descriptor() -> None:
    async with attached(GuestRam.around_pci_hole(4 << 30)) as (front_end, back_end):
        await front_end.handshake()
        ring = DriverRing(front_end.ram)
        await front_end.start_device({0: ring}, features=0)
        await front_end.stop_device()
        await front_end.start_device({0: ring}, features=0)
        assert back_end.requests.count(37) == 2
        above = front_end.ram.regions[1]
        await front_end.remove_region(above)
        message = back_end.messages[-1]
        assert (message.request, message.flags, message.fds) == (38, 9, [])
        assert struct.unpack("<QQQQQ", message.payload) == (
            0,
            4 << 30,
            2 << 30,
            above.region.user_address,
            0,  # QEMU sends no offset here
        )


async def test_without_memory_slots_a_table_is_sent_at_every_start() -> None:
    async with attached(protocol=PROTOCOL & ~(1 << 15)) as (front_end, back_end):
        await front_end.handshake()
        await front_end.start_device({}, features=0)
        await front_end.stop_device()
        await front_end.start_device({}, features=0)
        tables = [message for message in back_end.messages if message.request == 5]
        assert len(tables) == 2
        assert tables[0].payload.hex(" ", 8) == (
            "0100000000000000 0000000000000000 0000000100000000 000000005a7f0000 0000000000000000"
        )
        assert len(tables[0].fds) == 1
        assert 36 not in back_end.requests


async def test_config_reads_and_writes_cover_all_16_bytes() -> None:
    async with attached() as (front_end, back_end):
        await front_end.handshake()
        back_end.config[:] = bytes(range(16))
        assert await front_end.get_config() == bytes(range(16))
        await front_end.set_config(slice(4, 8), b"\xaa\xbb\xcc\xdd")
        await front_end.get_u64(1)
        assert sent(back_end)[-3:-1] == [
            "18000000 01000000 1c000000 000000001000000000000000" + 32 * "0",
            "19000000 09000000 1c000000 00000000100000000000000000010203aabbccdd08090a0b0c0d0e0f",
        ]


async def test_a_refusal_is_an_exception_with_the_code() -> None:
    async with attached() as (front_end, back_end):
        await front_end.handshake()
        back_end.refuse[37] = 5
        with pytest.raises(Refused, match="37 was refused with 5"):
            await front_end.start_device({}, features=0)
        assert back_end.requests[-1] == 37


async def test_a_reply_to_another_request_is_rejected() -> None:
    theirs, ours = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, GuestRam.create(MIB) as ram:
        async with FrontEnd(theirs, ram) as front_end:
            for header in ((1, 1, 8), (2, 5, 8), (1, 13, 8)):
                await ours.send(struct.pack("<IIIQ", *header, 0))
                with pytest.raises(UnexpectedReply):
                    await front_end.get_u64(1)
            ours.shutdown(socket.SHUT_WR)
            with pytest.raises(BackEndGone):
                await front_end.get_u64(1)


async def test_config_changes_arrive_and_are_acknowledged_on_request() -> None:
    async with attached() as (front_end, back_end):
        await front_end.handshake()
        back_end.set_target(7)
        message = await front_end.receive_backend_request()
        assert message.request == 2
        assert back_end.channel_reply() == struct.pack("<IIIQ", 2, 5, 8, 0)


async def test_a_signal_while_masked_reaches_the_guest() -> None:
    async with attached() as (front_end, _):
        await front_end.handshake()
        ring = DriverRing(front_end.ram)
        front_end.ports[0].masked_call.signal()
        await front_end.start_device({0: ring}, features=0)
        assert ring.call_event is not None
        assert ring.call_event.take() > 0


async def test_the_kick_eventfd_is_readable_before_the_ring_is_enabled() -> None:
    async with attached() as (front_end, back_end):
        await front_end.handshake()
        ring = DriverRing(front_end.ram)
        await front_end.start_ring(0, ring)
        await front_end.get_u64(1)
        assert ring.kick_event is not None
        assert ring.kick_event.take() == 1
        assert not back_end.rings[0].enabled
