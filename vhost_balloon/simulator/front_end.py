"""A vhost-user front end that sends what QEMU's vhost-user-test-device-pci does, in the same order.

Source: the vhost-user specification, and a log of QEMU 11.1 for order and flags. Like QEMU, it asks
for acknowledgements of memory regions, ring enables, config writes and the back-end channel, but
not of ring addresses and eventfds.

`handshake`, `start_device`, `stop_device` and the config accesses are well-behaved. Tests that are
not use `send`, `send_raw`, `receive_reply` and `call`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from protocol import vhost_user as vu
from protocol import vhost_user_payloads as payloads
from protocol.virtio_balloon import CONFIG_SIZE, NUM_QUEUES
from protocol.virtio_ring import DeviceStatus
from vhost_balloon.simulator.connection import Connection, UnexpectedReply, connect_socket
from vhost_balloon.simulator.events import EventFd, QueuePorts
from vhost_balloon.simulator.memory import GuestRam, RamRegion
from vhost_balloon.simulator.ring import DriverRing
from vhost_balloon.simulator.wire import BackEndGone, Message, receive_message, send_message

QEMU_PROTOCOL_FEATURES: Final = (1 << 24) - 1
"""QEMU acknowledges every bit below its maximum, even those that it does not implement."""


class FrontEnd(Connection):
    """QEMU as the back end sees it. An async context manager. It does not own the RAM."""

    def __init__(
        self, sock: trio.socket.SocketType, ram: GuestRam, *, queues: int = NUM_QUEUES
    ) -> None:
        """Take over a connected stream socket."""
        super().__init__(sock)
        self.ram = ram
        self.ports = [QueuePorts() for _ in range(queues)]
        self.features = 0  # offered, from the last GET_FEATURES
        self.queue_num = 0
        self.memory_slots = 0
        self.config = bytearray(CONFIG_SIZE)  # QEMU's copy, which it writes back whole
        self._channel: trio.socket.SocketType | None = None
        self._started: list[int] = []
        self._told_regions: list[RamRegion] = []

    @classmethod
    async def connect(
        cls, path: str | os.PathLike[str], ram: GuestRam, *, queues: int = NUM_QUEUES
    ) -> FrontEnd:
        """Connect to the socket at `path`.

        Raises:
            OSError: nothing listens there.
        """
        return cls(await connect_socket(path), ram, queues=queues)

    def close(self) -> None:
        """Close the connection without notice, as a killed QEMU does."""
        super().close()
        if self._channel is not None:
            self._channel.close()
        for ports in self.ports:
            ports.close()

    # Rings.

    async def set_vring(self, request: int, index: int, num: int) -> None:
        """Send a vring state, without acknowledgement."""
        await self.tell(request, payloads.build_vring_state(index, num))

    async def set_vring_fd(self, request: int, index: int, event: EventFd | None) -> None:
        """Send a kick, call or err eventfd, or NO_FD."""
        value = index if event is not None else index | vu.NO_FD
        fds = [event.fileno()] if event is not None else []
        await self.tell(request, bytes(payloads.U64.build(value)), fds)

    # QEMU's sequences.

    async def handshake(self, protocol_features: int = QEMU_PROTOCOL_FEATURES) -> None:
        """Send QEMU's messages at its start. protocol_features: those to accept if offered."""
        request, offered = vu.Request, vu.ProtocolFeature
        self.features = await self.get_u64(request.GET_FEATURES)
        if self.features & vu.VhostFeature.PROTOCOL_FEATURES:
            accepted = protocol_features & await self.get_u64(request.GET_PROTOCOL_FEATURES)
            await self.set_u64(request.SET_PROTOCOL_FEATURES, accepted)
            self.protocol_features = accepted
        if self.protocol_features & offered.MQ:
            self.queue_num = await self.get_u64(request.GET_QUEUE_NUM)
        if self.protocol_features & offered.CONFIGURE_MEM_SLOTS:
            self.memory_slots = await self.get_u64(request.GET_MAX_MEM_SLOTS)
        if self.protocol_features & offered.BACKEND_REQ:
            await self._open_channel()
        await self.tell(request.SET_OWNER)
        self._told_regions = []  # a device begins, which the regions have to be told
        self.features = await self.get_u64(request.GET_FEATURES)
        for index, ports in enumerate(self.ports):
            await self.set_vring_fd(request.SET_VRING_CALL, index, ports.masked_call)
            await self.set_vring_fd(request.SET_VRING_ERR, index, ports.err)

    async def start_device(
        self,
        rings: Mapping[int, DriverRing],
        *,
        features: int,
        bases: Mapping[int, int] | None = None,
    ) -> None:
        """Send QEMU's messages at DRIVER_OK and at `cont`.

        Args:
            rings: the rings that the driver set up, by queue index.
            features: the guest's negotiated features; PROTOCOL_FEATURES is added if offered.
            bases: the result of `stop_device` at `cont`; after a reset, all bases are 0.
        """
        request = vu.Request
        protocol_bit = self.features & vu.VhostFeature.PROTOCOL_FEATURES
        await self.set_u64(request.SET_FEATURES, features | protocol_bit)
        await self._add_status(DeviceStatus.FEATURES_OK)
        await self._tell_memory()
        self._started = sorted(rings)
        for index in self._started:
            await self.start_ring(index, rings[index], (bases or {}).get(index, 0))
        await self.enable_rings(True)
        for index in range(len(self.ports)):
            await self._unmask(index)

    async def start_ring(self, index: int, ring: DriverRing, base: int = 0) -> None:
        """Send one ring's size, base, addresses (as user addresses) and eventfds."""
        request, ports = vu.Request, self.ports[index]
        await self.set_vring(request.SET_VRING_NUM, index, ring.size)
        await self.set_vring(request.SET_VRING_BASE, index, base)
        await self.set_vring_addr(index, ring)
        ring.call_event = ports.call
        ring.kick_event = ports.renew_kick()
        await self.set_vring_fd(request.SET_VRING_KICK, index, ports.kick)
        await self.set_vring_fd(request.SET_VRING_CALL, index, ports.masked_call)

    async def set_vring_addr(self, index: int, ring: DriverRing) -> None:
        """Send the user addresses of the ring's three parts."""
        parts = {
            "index": index,
            "flags": 0,
            "descriptor": self.ram.to_user(ring.descriptors),
            "used": self.ram.to_user(ring.used),
            "available": self.ram.to_user(ring.available),
            "log": 0,
        }
        await self.tell(vu.Request.SET_VRING_ADDR, bytes(payloads.VringAddr.build(parts)))

    async def enable_rings(self, enable: bool) -> None:
        """Enable or disable every queue of the device, even those that were not set up."""
        for index in range(len(self.ports)):
            state = payloads.build_vring_state(index, int(enable))
            await self.command(vu.Request.SET_VRING_ENABLE, state)

    async def stop_device(self) -> dict[int, int]:
        """Send QEMU's messages at `stop`, reboot, driver unload and exit. Return all bases."""
        await self.enable_rings(False)
        bases = {index: await self.get_vring_base(index) for index in self._started}
        self._started = []
        return bases

    async def get_vring_base(self, index: int) -> int:
        """Stop one ring and return the available index that the device has reached."""
        state = payloads.build_vring_state(index, 0)
        reply = await self.call(vu.Request.GET_VRING_BASE, state)
        returned, base = payloads.parse_vring_state(reply)
        if returned != index:
            raise UnexpectedReply(f"asked for the base of ring {index}, got that of {returned}")
        return base

    # Memory.

    async def add_region(self, region: RamRegion) -> None:
        """Send ADD_MEM_REG with the region's descriptor.

        Raises:
            Refused: the back end rejects the region.
        """
        payload = payloads.SingleMemoryRegion.build(
            {"padding": 0, "region": _region_fields(region.region)}
        )
        await self.command(vu.Request.ADD_MEM_REG, bytes(payload), [region.fd])
        self._told_regions.append(region)

    async def remove_region(self, region: RamRegion) -> None:
        """Send REM_MEM_REG like QEMU: without descriptor, and with file offset 0."""
        fields = {**_region_fields(region.region), "mmap_offset": 0}
        payload = payloads.SingleMemoryRegion.build({"padding": 0, "region": fields})
        await self.command(vu.Request.REM_MEM_REG, bytes(payload))
        self._told_regions.remove(region)

    async def set_mem_table(self, regions: Sequence[RamRegion] | None = None) -> None:
        """Send SET_MEM_TABLE with all of RAM, or only `regions` (at most 8)."""
        regions = self.ram.regions if regions is None else regions
        table = {
            "num_regions": len(regions),
            "padding": 0,
            "regions": [_region_fields(region.region) for region in regions],
        }
        payload = bytes(payloads.MemoryTable.build(table))
        await self.command(vu.Request.SET_MEM_TABLE, payload, [region.fd for region in regions])
        self._told_regions = list(regions)

    # Config space.

    async def get_config(self) -> bytes:
        """Read all 16 bytes, as QEMU does for each field that the guest reads."""
        request = payloads.CONFIG.pack(0, CONFIG_SIZE, vu.ConfigFlag.WRITABLE) + bytes(CONFIG_SIZE)
        reply = payloads.parse_config(await self.call(vu.Request.GET_CONFIG, request))
        self.config[:] = reply.payload
        return reply.payload

    async def set_config(self, field: slice, data: bytes) -> None:
        """Write one field. Like QEMU, change the copy and send all its 16 bytes.

        Raises:
            Refused: a conforming back end never does.
        """
        self.config[field] = data
        header = payloads.CONFIG.pack(0, CONFIG_SIZE, vu.ConfigFlag.WRITABLE)
        await self.command(vu.Request.SET_CONFIG, header + self.config)

    # The back end's own requests.

    async def receive_backend_request(self) -> Message:
        """Wait for a request of the back end, and acknowledge it if it asks for that.

        Raises:
            BackEndGone: it closed the channel, or there is none.
        """
        if self._channel is None:
            raise BackEndGone("there is no back-end channel")
        message = await receive_message(self._channel)
        if message.flags & vu.HeaderFlag.NEED_REPLY:
            done = bytes(payloads.U64.build(0))
            await send_message(self._channel, message.request, vu.REPLY_FLAGS, done)
        return message

    async def _open_channel(self) -> None:
        ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel = ours
        with theirs:
            await self.command(vu.Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    async def _add_status(self, bits: int) -> None:
        if not self.protocol_features & vu.ProtocolFeature.STATUS:
            return
        status = await self.get_u64(vu.Request.GET_STATUS)
        await self.set_u64(vu.Request.SET_STATUS, status | bits)

    async def _tell_memory(self) -> None:
        """Send the regions that the back end does not know yet."""
        if not self.protocol_features & vu.ProtocolFeature.CONFIGURE_MEM_SLOTS:
            await self.set_mem_table()
            return
        for region in self.ram.regions:
            if region not in self._told_regions:
                await self.add_region(region)

    async def _unmask(self, index: int) -> None:
        """Direct the queue's calls to the guest, and forward one that arrived while masked."""
        ports = self.ports[index]
        await self.set_vring_fd(vu.Request.SET_VRING_CALL, index, ports.call)
        if ports.masked_call.take():
            ports.call.signal()


def _region_fields(region: payloads.Region) -> dict[str, int]:
    return {
        "guest_address": region.guest_address,
        "size": region.size,
        "user_address": region.user_address,
        "mmap_offset": region.mmap_offset,
    }
