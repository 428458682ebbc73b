"""A driver's side of virtio over PCI (the modern transport), over qtest.

Source: virtio specification, "Virtio Over PCI Bus"; PCI configuration through ports 0xCF8/0xCFC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol.virtio_ring import DeviceStatus
from tests.benchmarks.sides.qtest import Qtest, QtestError, write_command
from vhost_balloon.simulator.ring import DriverRing

BAR_BASE: Final = 0xE000_0000
"""Base address of BARs: inside q35's PCI hole, above any RAM that a benchmark uses."""

_COMMAND: Final = 0x04
_MEMORY_AND_BUS_MASTER: Final = 0x06
_BAR0: Final = 0x10
_CAPABILITIES: Final = 0x34
_VENDOR_SPECIFIC: Final = 0x09
_COMMON, _NOTIFY = 1, 2

# struct virtio_pci_common_cfg: offsets
_DEVICE_FEATURE_SELECT, _DEVICE_FEATURE = 0, 4
_DRIVER_FEATURE_SELECT, _DRIVER_FEATURE = 8, 12
_STATUS: Final = 20
_QUEUE_SELECT, _QUEUE_SIZE, _QUEUE_ENABLE, _QUEUE_NOTIFY_OFF = 22, 24, 28, 30
_QUEUE_DESC, _QUEUE_DRIVER, _QUEUE_DEVICE = 32, 40, 48


@dataclass(frozen=True)
class _Capability:
    bar: int
    offset: int
    extra: int  # of a notify capability: bytes from one queue's register to the next's


class VirtioPci:
    """One virtio device in slot `slot` of bus 0, its registers mapped."""

    def __init__(self, qtest: Qtest, slot: int) -> None:
        """Find the device's registers and map them. Raises QtestError."""
        self._qtest = qtest
        self._slot = slot
        capabilities = self._read_capabilities()
        bars = {capability.bar for capability in capabilities.values()}
        bases = {bar: BAR_BASE + 0x10_0000 * bar for bar in bars}
        for bar, base in bases.items():
            self._set_config(_BAR0 + 4 * bar, base)
            if self._config(_BAR0 + 4 * bar) & 0x6 == 0x4:  # 64 bits wide
                self._set_config(_BAR0 + 4 * bar + 4, 0)
        self._set_config(_COMMAND, _MEMORY_AND_BUS_MASTER)
        common, notify = capabilities[_COMMON], capabilities[_NOTIFY]
        self._common = bases[common.bar] + common.offset
        self._notify = bases[notify.bar] + notify.offset
        self._multiplier = notify.extra

    # Life of the device.

    def reset(self) -> None:
        """Status 0, then ACKNOWLEDGE and DRIVER."""
        self._write(1, _STATUS, 0)
        self._add_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)

    def features(self) -> int:
        """The features that the device offers."""
        words = []
        for select in range(2):
            self._write(4, _DEVICE_FEATURE_SELECT, select)
            words.append(self._read(4, _DEVICE_FEATURE))
        return words[0] | words[1] << 32

    def accept(self, features: int) -> None:
        """Negotiate features. Raises QtestError if the device does not take them."""
        for select in range(2):
            self._write(4, _DRIVER_FEATURE_SELECT, select)
            self._write(4, _DRIVER_FEATURE, features >> 32 * select & 0xFFFF_FFFF)
        self._add_status(DeviceStatus.FEATURES_OK)
        if not self._read(1, _STATUS) & DeviceStatus.FEATURES_OK:
            raise QtestError(f"the device does not take features {features:#x}")

    def set_queue(self, index: int, ring: DriverRing) -> str:
        """Set up and enable one queue; return the qtest command that kicks it."""
        self._write(2, _QUEUE_SELECT, index)
        if self._read(2, _QUEUE_SIZE) < ring.size:
            raise QtestError(f"queue {index} has fewer than {ring.size} descriptors")
        self._write(2, _QUEUE_SIZE, ring.size)
        parts = (ring.descriptors, ring.available, ring.used)
        places = (_QUEUE_DESC, _QUEUE_DRIVER, _QUEUE_DEVICE)
        for place, address in zip(places, parts, strict=True):
            self._write(4, place, address & 0xFFFF_FFFF)
            self._write(4, place + 4, address >> 32)
        self._write(2, _QUEUE_ENABLE, 1)
        offset = self._read(2, _QUEUE_NOTIFY_OFF) * self._multiplier
        return write_command(2, self._notify + offset, index)

    def start(self) -> None:
        """DRIVER_OK."""
        self._add_status(DeviceStatus.DRIVER_OK)

    def _add_status(self, bits: int) -> None:
        self._write(1, _STATUS, self._read(1, _STATUS) | bits)

    # Registers.

    def _read(self, size: int, offset: int) -> int:
        return self._qtest.read(size, self._common + offset)

    def _write(self, size: int, offset: int, value: int) -> None:
        self._qtest.write(size, self._common + offset, value)

    def _config(self, offset: int) -> int:
        """Read the 32-bit word of configuration space containing offset, shifted to it."""
        self._qtest.outl(0xCF8, 1 << 31 | self._slot << 11 | offset & ~3)
        return self._qtest.inl(0xCFC) >> 8 * (offset & 3)

    def _set_config(self, offset: int, value: int) -> None:
        self._qtest.outl(0xCF8, 1 << 31 | self._slot << 11 | offset)
        self._qtest.outl(0xCFC, value)

    def _read_capabilities(self) -> dict[int, _Capability]:
        """Read the virtio capabilities by type. Raises QtestError if any is missing."""
        found: dict[int, _Capability] = {}
        position = self._config(_CAPABILITIES) & 0xFC
        while position:
            head = self._config(position)
            if head & 0xFF == _VENDOR_SPECIFIC:
                bar = self._config(position + 4) & 0xFF
                offset, extra = self._config(position + 8), self._config(position + 16)
                found.setdefault(head >> 24 & 0xFF, _Capability(bar, offset, extra))
            position = head >> 8 & 0xFC
        if not {_COMMON, _NOTIFY} <= set(found):
            raise QtestError(f"no modern virtio device in slot {self._slot}")
        return found
