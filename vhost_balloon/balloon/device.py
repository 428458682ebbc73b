"""The balloon device as its guest sees it: features, config space, target, statistics. Pure.

Source: virtio specification, "Traditional Memory Balloon Device".

Config space rules:
- num_pages and free_page_hint_cmd_id belong to the device. Guest writes to them are ignored, never
  refused, because QEMU writes all 16 bytes back, whatever the guest changed.
- poison_val arrives before the features. It is stored then, and matters once PAGE_POISON is
  negotiated. It survives ring stops; a device reset or a new connection clears it.
- An order, the operator's target, is in bytes. It waits until it is due: guest memory is known, and
  there is a driver. Then it becomes num_pages, once. Nothing else changes num_pages: hot-plug moves
  target and actual, as in QEMU.
"""

from __future__ import annotations

from protocol.virtio_balloon import (
    CMD_ID_STOP,
    CONFIG_SIZE,
    CONFIG_SPACE,
    PFN_SHIFT,
    BalloonFeature,
    StatTag,
)
from vhost_balloon.balloon.guest_ram import GuestRam
from vhost_balloon.balloon.guest_stats import GuestStats
from vhost_balloon.balloon.hold import FREE, Hold
from vhost_balloon.errors import FrontEndError

MAX_PAGES = (1 << 32) - 1


class Balloon:
    """The device model of one device of a front end."""

    def __init__(self, order: int | None = None, memory: int | None = None) -> None:
        """order: the first one, if any. memory: the operator's word for guest memory, in bytes."""
        self.features = 0
        self.stats = GuestStats()
        self.ram = GuestRam(memory)
        self.order = order
        """Bytes that the guest is to keep, by an order that is not due yet."""
        self.hold: Hold = FREE
        self._num_pages = 0
        self._actual = 0
        self._cmd_id = CMD_ID_STOP
        self._poison = 0

    @property
    def memory_size(self) -> int:
        """Bytes of guest memory; 0 if unknown."""
        return self.ram.size

    @property
    def target(self) -> int:
        """Bytes that the guest is to keep. All of its memory unless there was an order."""
        if self.order is not None:
            return min(self.order, self.memory_size) if self.memory_size else self.order
        return max(self.memory_size - (self._num_pages << PFN_SHIFT), 0)

    @property
    def actual(self) -> int:
        """Bytes that the guest has outside its balloon, by its own account. Never below 0."""
        return max(self.memory_size - (self._actual << PFN_SHIFT), 0)

    @property
    def target_pages(self) -> int:
        """Balloon pages (4 KiB) that are to be in the balloon: num_pages."""
        return self._num_pages

    @property
    def held_pages(self) -> int:
        """Balloon pages that are in the balloon, by the guest's account: actual."""
        return self._actual

    @property
    def balloon_size(self) -> int:
        """Bytes in the balloon, by the guest's account."""
        return self._actual << PFN_SHIFT

    @property
    def may_drop_reported(self) -> bool:
        """Whether reported pages may lose their content: the poison rules of PAGE_REPORTING."""
        return not (self.features & BalloonFeature.PAGE_POISON and self._poison)

    def snapshot(self) -> tuple[int | None, int, int, int, int]:
        """For restore(): order in bytes, num_pages, actual, free_page_hint_cmd_id, poison_val."""
        return self.order, self._num_pages, self._actual, self._cmd_id, self._poison

    def restore(
        self, order: int | None, num_pages: int, actual: int, cmd_id: int, poison: int
    ) -> None:
        """Continue from a snapshot. Raises ValueError if the config space cannot hold it."""
        if any(not 0 <= value <= MAX_PAGES for value in (num_pages, actual, cmd_id, poison)):
            raise ValueError("a config space field does not fit 32 bits")
        self.order, self._num_pages, self._actual = order, num_pages, actual
        self._cmd_id, self._poison = cmd_id, poison

    def carry_out(self, target: int) -> bool:
        """Set num_pages so that the guest keeps target bytes (> 0) of its memory, which is known.

        Returns whether the config space changed. Above guest memory is all of it, as in QEMU.
        """
        self.order = None
        pages = min(max(self.memory_size - target, 0) >> PFN_SHIFT, MAX_PAGES)
        changed = pages != self._num_pages
        self._num_pages = pages
        return changed

    def sampled(self) -> None:
        """The guest has given a sample. A driver's first one is held against its regions.

        Linux takes ballooned pages out of its total only without DEFLATE_ON_OOM.
        """
        total = self.stats.values.get(StatTag.MEMTOT)
        if total is not None and not self.features & BalloonFeature.DEFLATE_ON_OOM:
            total += self.balloon_size
        self.ram.total = total
        if not self.ram.judged:
            self.ram.judge()
        self.stats.actual = self.actual if self.memory_size else None

    def begin(self, order: int | None) -> None:
        """Become the device of a front end that has negotiated nothing. order: bytes, or None."""
        stated = self.ram.stated
        self.restore(order, 0, 0, CMD_ID_STOP, 0)
        self.hold = FREE
        self.features = 0
        self.stats.clear()
        self.ram = GuestRam(stated)

    def read_config(self, offset: int, size: int) -> bytes:
        """Read the config space. Raises FrontEndError outside of it."""
        _check_config_range(offset, size)
        return self._config()[offset : offset + size]

    def write_config(self, offset: int, data: bytes, *, migration: bool) -> bool:
        """Write the fields that the guest, or a migration, may write. Returns whether `actual`
        changed. Raises FrontEndError outside the config space."""
        _check_config_range(offset, len(data))
        after = bytearray(self._config())
        after[offset : offset + len(data)] = data
        num_pages, actual, cmd_id, poison = CONFIG_SPACE.unpack(after)
        if migration:
            self._num_pages, self._cmd_id = num_pages, cmd_id
        changed: bool = actual != self._actual
        self._actual, self._poison = actual, poison
        return changed

    def _config(self) -> bytes:
        return CONFIG_SPACE.pack(self._num_pages, self._actual, self._cmd_id, self._poison)

    def new_driver(self) -> bool:
        """A driver was loaded (reboot, reload): the balloon is empty. Returns whether `actual`
        changed."""
        changed = self._actual != 0
        self._actual = 0
        self.stats.clear()
        self.ram.new_driver()
        return changed

    def reset(self) -> bool:
        """The device was reset, which also clears the poison. Returns whether `actual` changed."""
        self._poison = 0
        return self.new_driver()


def _check_config_range(offset: int, size: int) -> None:
    if size == 0 or offset + size > CONFIG_SIZE:
        raise FrontEndError(f"{size} bytes at {offset} are outside a config space of {CONFIG_SIZE}")
