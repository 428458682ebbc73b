"""What this device offers."""

from __future__ import annotations

from typing import Final

from protocol.vhost_user import ProtocolFeature, VhostFeature
from protocol.virtio_ring import RingFeature

TRANSPORT_FEATURES: Final = int(
    VhostFeature.PROTOCOL_FEATURES | RingFeature.INDIRECT_DESC | RingFeature.VERSION_1
)
"""Offered beside the balloon's own bits. No EVENT_IDX: see virtqueue."""

PROTOCOL_FEATURES: Final = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""Never INBAND_NOTIFICATIONS, XEN_MMAP or GPA_ADDRESSES: QEMU acknowledges these bits without
having code for them."""
