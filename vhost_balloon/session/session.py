"""The state of one vhost-user connection, and the rules that rings and drivers follow. Pure.

requests.py handles messages. Source: QEMU docs/interop/vhost-user.rst.

- A ring is started by SET_VRING_KICK and stopped by GET_VRING_BASE or RESET_DEVICE; it is
  processed while it is started and enabled. Without VHOST_USER_F_PROTOCOL_FEATURES it is
  always enabled.
- The device is suspended while no ring is started: then nothing is sent to the front end.
- Stop, reboot, driver unload and reload all look alike. The driver is new if all rings start at 0
  although one of them was stopped elsewhere. Front ends start their rings one by one or together,
  so this is checked each time more of them run.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from protocol.vhost_user import ProtocolFeature, VhostFeature
from protocol.vhost_user_payloads import Region, VringAddress
from protocol.virtio_balloon import DEFLATE_INDEX, INFLATE_INDEX, NUM_QUEUES, BalloonFeature
from protocol.virtio_ring import RingFeature
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.errors import FrontEndError
from vhost_balloon.session.effects import (
    ActualChanged,
    Effect,
    NewDriver,
    ReplaceRegions,
    RingsChanged,
    SetCall,
    SetErr,
    StopRing,
)

TRANSPORT_FEATURES: Final = int(
    VhostFeature.PROTOCOL_FEATURES | RingFeature.INDIRECT_DESC | RingFeature.VERSION_1
)
"""Offered besides the balloon's bits. No EVENT_IDX: see queues/virtqueue.py."""

PROTOCOL_FEATURES: Final = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""Never INBAND_NOTIFICATIONS, XEN_MMAP or GPA_ADDRESSES: QEMU acknowledges these bits but does not
implement them."""


@dataclass(slots=True)
class Ring:
    """One ring as the front end has set it up."""

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
        self.files: dict[int, object] = {}
        """Identities of the regions' files, by guest address, where they are known."""
        self.rings = [Ring() for _ in range(NUM_QUEUES)]
        self.config_unread = False
        """num_pages has changed since the last GET_CONFIG."""
        self.returned_bases: dict[int, int] = {}
        """The base at which each ring stopped, until it runs again."""
        self.first_order: int | None = None
        """Bytes that the guest keeps when its device begins, None for all."""

    @property
    def suspended(self) -> bool:
        return not any(ring.started for ring in self.rings)

    @property
    def driver_ready(self) -> bool:
        return self.rings[INFLATE_INDEX].started and self.rings[DEFLATE_INDEX].started

    @property
    def gives_stats(self) -> bool:
        return self.driver_ready and bool(self.features & BalloonFeature.STATS_VQ)

    @property
    def has_driver(self) -> bool:
        """The driver is ready, or was when its rings were stopped."""
        return self.driver_ready or bool(self.returned_bases)

    @property
    def started(self) -> list[int]:
        """Indexes of the started rings, enabled or not."""
        return [index for index, ring in enumerate(self.rings) if ring.started]

    def is_enabled(self, index: int) -> bool:
        # In this order because every scrape calls this, and an enum's & takes two microseconds.
        return self.rings[index].enabled or not self.features & VhostFeature.PROTOCOL_FEATURES

    def share_memory(self) -> None:
        """Tell the balloon what regions there are now, and forget the files of others."""
        sizes = {region.guest_address: region.size for region in self.regions}
        self.files = {start: file for start, file in self.files.items() if start in sizes}
        self.balloon.ram.share(sizes, self.files)

    def memory_changed(self) -> Generator[Effect, Any, None]:
        self.share_memory()
        if self.balloon.balloon_size:
            yield ActualChanged()

    def ring(self, index: int) -> Ring:
        """Raises FrontEndError if the device has no such ring."""
        if index >= len(self.rings):
            raise FrontEndError(f"ring {index} does not exist")
        return self.rings[index]

    def stop(self, index: int) -> Generator[Effect, Any, None]:
        ring = self.rings[index]
        ring.base = yield StopRing(index)
        ring.started = False
        yield RingsChanged()

    def rings_enabled(self) -> Generator[Effect, Any, None]:
        """Once rings run again, detect a new driver."""
        if any(self.is_enabled(index) for index in self.started):
            before = [self.returned_bases.pop(index, 0) for index in self.started]
            if any(before) and not any(self.rings[index].base for index in self.started):
                self.returned_bases.clear()
                yield NewDriver()
                if self.balloon.new_driver():
                    yield ActualChanged()
        yield RingsChanged()

    def reset(self) -> Generator[Effect, Any, None]:
        """Stop and disable all rings and forget the driver; keep memory and connection."""
        for index in self.started:
            yield from self.stop(index)
        self.rings = [Ring() for _ in range(NUM_QUEUES)]
        self.returned_bases.clear()
        self.status = 0
        yield NewDriver()
        if self.balloon.reset():
            yield ActualChanged()

    def begin_device(self) -> Generator[Effect, Any, None]:
        """Forget the device that this connection had, if it had one: a front end that unplugs it
        and plugs another keeps the connection, and does not remove the regions."""
        if not self.regions and not self.features:
            return
        yield from self.reset()
        yield ReplaceRegions([])
        for index in range(NUM_QUEUES):
            yield SetCall(index, None)
            yield SetErr(index, None)
        self.regions, self.files = [], {}
        self.features = 0
        self.config_unread = False
        self.balloon.begin(self.first_order)
        yield ActualChanged()
