"""The vhost-user back end's side of one connection, without any I/O. Pure.

Source: QEMU docs/interop/vhost-user.rst.

Theory of operation. handle(message) is a generator: it yields effects (vhost_balloon.session.effects),
is sent their results, and returns the reply's payload or None. A handler (requests_*) returns
the payload or None at once, or is such a generator itself. Each goes through the
same four steps: gate (is the request's feature negotiated), size, validation, act. State changes
only after the effects that it depends on have succeeded; FrontEndError, raised by a handler or
thrown into it, turns into a refusal: a non-zero ack where one was asked for, the defined "no" of
those requests that always have a reply, nothing otherwise.

Rules about rings:
- A ring is started by SET_VRING_KICK and stopped by GET_VRING_BASE or RESET_DEVICE; it is
  processed while it is started and enabled. Without VHOST_USER_F_PROTOCOL_FEATURES it is
  always enabled.
- The device is suspended while no ring is started: then nothing is sent to the front end.
- Stop, reboot, driver unload and reload all look alike. It is a new driver if all rings start at 0
  although one of them was stopped elsewhere. Front ends start their rings one by one or together,
  so this is judged whenever more of them run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

from protocol.vhost_user import (
    DEVICE_STATE_NO_FD,
    HeaderFlag,
    ProtocolFeature,
    Request,
    VhostFeature,
)
from protocol.vhost_user_payloads import (
    NO_SHMEM,
    Inflight,
    PayloadError,
    Region,
    VringAddress,
    build_u64,
    build_vring_state,
)
from protocol.virtio_balloon import DEFLATE_INDEX, INFLATE_INDEX, NUM_QUEUES
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.errors import FrontEndError
from vhost_balloon.session import requests_device, requests_memory, requests_rings
from vhost_balloon.session.effects import (
    ActualChanged,
    ConfigChanged,
    Effect,
    NewDriver,
    RingsChanged,
    Steps,
    StopRing,
)
from vhost_balloon.session.features import TRANSPORT_FEATURES
from vhost_balloon.session.message import WITH_FDS, Message

REFUSALS: Final[dict[int, bytes]] = {
    Request.GET_FEATURES: build_u64(0),
    Request.GET_PROTOCOL_FEATURES: build_u64(0),
    Request.GET_CONFIG: b"",
    Request.GET_INFLIGHT_FD: bytes(Inflight.sizeof()),
    Request.GET_SHMEM_CONFIG: NO_SHMEM,
    Request.SET_DEVICE_STATE_FD: build_u64(DEVICE_STATE_NO_FD | 1),
    Request.GET_QUEUE_NUM: build_u64(0),
    Request.GET_MAX_MEM_SLOTS: build_u64(0),
    Request.GET_STATUS: build_u64(0),
    Request.CHECK_DEVICE_STATE: build_u64(1),
    Request.GET_SHARED_OBJECT: build_u64(1),
    Request.IOTLB_MSG: build_u64(1),
    Request.POSTCOPY_END: build_u64(1),
}
"""What "no" looks like for the requests that have a reply even without need_reply."""

# An operator of an IntFlag takes a microsecond, and there are three on the guest's hot path.
_REPLY: Final = int(HeaderFlag.REPLY)
_NEED_REPLY: Final = int(HeaderFlag.NEED_REPLY)
_REPLY_ACK: Final = int(ProtocolFeature.REPLY_ACK)

BASE_REQUESTS: Final = (Request.GET_VRING_BASE, Request.GET_VRING_BASE_SKIP_DRAIN)


@dataclass(slots=True)
class Ring:
    """What the front end has said of one ring."""

    size: int = 0
    address: VringAddress | None = None
    base: int = 0
    enabled: bool = False
    started: bool = False


class Session:
    """One connection's state: features, memory table, rings, device status.

    offered are the balloon's feature bits; NUM_QUEUES rings exist.
    """

    def __init__(self, balloon: Balloon, offered: int) -> None:
        self.balloon = balloon
        self.offered = offered | TRANSPORT_FEATURES
        self.features = 0
        self.protocol_features = 0
        self.status = 0
        self.regions: list[Region] = []
        self.rings = [Ring() for _ in range(NUM_QUEUES)]
        self.config_unread = False
        """num_pages changed and no GET_CONFIG was answered since."""
        self.returned_bases: dict[int, int] = {}
        """Where each ring was stopped that does not run again yet."""

    @property
    def suspended(self) -> bool:
        return not any(ring.started for ring in self.rings)

    @property
    def driver_ready(self) -> bool:
        return self.rings[INFLATE_INDEX].started and self.rings[DEFLATE_INDEX].started

    @property
    def started(self) -> list[int]:
        """Indexes of the rings that are set up (started), enabled or not."""
        return [index for index, ring in enumerate(self.rings) if ring.started]

    def is_enabled(self, index: int) -> bool:
        # In this order because every scrape asks, and an enum's & costs two microseconds.
        return self.rings[index].enabled or not self.features & VhostFeature.PROTOCOL_FEATURES

    def handle(self, message: Message) -> Steps:
        """Act on one message. Returns the reply's payload, or None for no reply.

        Raises FrontEndError after the refusal was decided: see refuse().
        """
        if message.oversized:
            raise FrontEndError("payload is too long")
        if message.flags & _REPLY:
            raise FrontEndError("reply flag on a request")
        entry = _HANDLERS.get(message.request)
        if entry is None:
            raise FrontEndError("not supported")
        handler, gate = entry
        if gate & ~self.protocol_features:
            raise FrontEndError(f"{ProtocolFeature(gate).name} is not negotiated")
        if message.fds_lost:
            raise FrontEndError("its descriptors could not all be received, or do not belong to it")
        if message.request not in WITH_FDS:
            message.expect_fds(0)
        try:
            outcome = handler(self, message)
            if outcome is None or isinstance(outcome, bytes):
                reply = outcome
            else:
                reply = yield from outcome
        except PayloadError as error:
            raise FrontEndError(str(error)) from None
        return self._ack(message, 0) if reply is None else reply

    def refuse(self, message: Message) -> bytes | None:
        """The reply to a request that was refused, or None where none is due."""
        if message.request in BASE_REQUESTS:
            index = int.from_bytes(message.payload[:4], "little")
            return build_vring_state(index, 0)
        if message.request in REFUSALS:
            return REFUSALS[message.request]
        return self._ack(message, 1)

    def _ack(self, message: Message, value: int) -> bytes | None:
        if message.flags & _NEED_REPLY and self.protocol_features & _REPLY_ACK:
            return build_u64(value)
        return None

    def memory_changed(self) -> Generator[Effect, Any, None]:
        if self.balloon.set_memory_size(sum(region.size for region in self.regions)):
            yield ConfigChanged()
        if self.balloon.balloon_size:
            yield ActualChanged()

    def ring(self, index: int) -> Ring:
        """Raises FrontEndError for an index that is not the device's."""
        if index >= len(self.rings):
            raise FrontEndError(f"ring {index} does not exist")
        return self.rings[index]

    def stop(self, index: int) -> Generator[Effect, Any, None]:
        ring = self.rings[index]
        ring.base = yield StopRing(index)
        ring.started = False
        yield RingsChanged()

    def rings_enabled(self) -> Generator[Effect, Any, None]:
        """Once rings run again, tell whether it is the same driver as before."""
        if any(self.is_enabled(index) for index in self.started):
            before = [self.returned_bases.pop(index, 0) for index in self.started]
            if any(before) and not any(self.rings[index].base for index in self.started):
                self.returned_bases.clear()
                yield NewDriver()
                if self.balloon.new_driver():
                    yield ActualChanged()
        yield RingsChanged()

    def reset(self) -> Generator[Effect, Any, None]:
        """Stop and disable all rings and forget the driver; memory and connection stay."""
        for index in self.started:
            yield from self.stop(index)
        self.rings = [Ring() for _ in range(NUM_QUEUES)]
        self.returned_bases.clear()
        self.status = 0
        yield NewDriver()
        if self.balloon.reset():
            yield ActualChanged()


_Handler = Callable[[Session, Message], Steps | bytes | None]
_F = ProtocolFeature

_HANDLERS: Final[dict[int, tuple[_Handler, int]]] = {
    Request.GET_FEATURES: (requests_device.get_features, 0),
    Request.SET_FEATURES: (requests_device.set_features, 0),
    Request.SET_OWNER: (requests_device.set_owner, 0),
    Request.RESET_OWNER: (requests_device.reset_owner, 0),
    Request.SET_MEM_TABLE: (requests_memory.set_mem_table, 0),
    Request.SET_VRING_NUM: (requests_rings.set_vring_num, 0),
    Request.SET_VRING_ADDR: (requests_rings.set_vring_addr, 0),
    Request.SET_VRING_BASE: (requests_rings.set_vring_base, 0),
    Request.GET_VRING_BASE: (requests_rings.get_vring_base, 0),
    Request.SET_VRING_KICK: (requests_rings.set_vring_kick, 0),
    Request.SET_VRING_CALL: (requests_rings.set_vring_call, 0),
    Request.SET_VRING_ERR: (requests_rings.set_vring_err, 0),
    Request.GET_PROTOCOL_FEATURES: (requests_device.get_protocol_features, 0),
    Request.SET_PROTOCOL_FEATURES: (requests_device.set_protocol_features, 0),
    Request.GET_QUEUE_NUM: (requests_device.get_queue_num, int(_F.MQ)),
    Request.SET_VRING_ENABLE: (requests_rings.set_vring_enable, 0),
    Request.SET_BACKEND_REQ_FD: (requests_device.set_backend_req_fd, int(_F.BACKEND_REQ)),
    Request.GET_CONFIG: (requests_device.get_config, int(_F.CONFIG)),
    Request.SET_CONFIG: (requests_device.set_config, int(_F.CONFIG)),
    Request.RESET_DEVICE: (requests_device.reset_device, int(_F.RESET_DEVICE)),
    Request.GET_MAX_MEM_SLOTS: (requests_device.get_max_mem_slots, int(_F.CONFIGURE_MEM_SLOTS)),
    Request.ADD_MEM_REG: (requests_memory.add_mem_reg, int(_F.CONFIGURE_MEM_SLOTS)),
    Request.REM_MEM_REG: (requests_memory.rem_mem_reg, int(_F.CONFIGURE_MEM_SLOTS)),
    Request.SET_STATUS: (requests_device.set_status, int(_F.STATUS)),
    Request.GET_STATUS: (requests_device.get_status, int(_F.STATUS)),
}
"""The handler of each request and the protocol feature that it needs."""
