"""The balloon device as its guest sees it: features, config space, target, queues. Pure.

Source: virtio specification, "Traditional Memory Balloon Device".

Config space rules:
- num_pages and free_page_hint_cmd_id are the device's: guest writes to them are ignored, never
  refused, because QEMU writes all 16 bytes back, whatever the guest changed.
- poison_val arrives before the features do. It is taken then, and judged once PAGE_POISON is
  negotiated. Ring stops keep it; a device reset and a new connection clear it.
- The target is a wish in bytes. num_pages follows from it and from the size of guest memory,
  which the front end tells only when the driver starts and changes by hot-plug.
"""

from __future__ import annotations

from protocol.virtio_balloon import (
    CMD_ID_STOP,
    CONFIG_SIZE,
    CONFIG_SPACE,
    PFN_SHIFT,
    BalloonFeature,
)
from vhost_balloon.balloon.guest_stats import GuestStats
from vhost_balloon.errors import FrontEndError

MAX_PAGES = (1 << 32) - 1


class Balloon:
    """The device model of one front end's connection."""

    def __init__(self) -> None:
        self.features = 0
        self.stats = GuestStats()
        self.memory_size = 0
        self._wish: int | None = None
        self._num_pages = 0
        self._actual = 0
        self._cmd_id = CMD_ID_STOP
        self._poison = 0

    @property
    def target(self) -> int:
        """Bytes that the guest is to keep: guest memory without a wish."""
        if self._wish is not None and self.memory_size == 0:
            return self._wish
        return max(self.memory_size - (self._num_pages << PFN_SHIFT), 0)

    @property
    def actual(self) -> int:
        """Bytes that the guest has outside its balloon, by its own account; never below 0."""
        return max(self.memory_size - (self._actual << PFN_SHIFT), 0)

    @property
    def target_pages(self) -> int:
        """Balloon pages (4 KiB) that the guest is to hold: num_pages."""
        return self._num_pages

    @property
    def held_pages(self) -> int:
        """Balloon pages that the guest holds by its own account: actual."""
        return self._actual

    @property
    def has_target(self) -> bool:
        """Whether a target was set by this daemon's operator."""
        return self._wish is not None

    @property
    def balloon_size(self) -> int:
        """Bytes in the balloon, by the guest's own account."""
        return self._actual << PFN_SHIFT

    @property
    def may_drop_reported(self) -> bool:
        """Whether reported pages may lose their content (poison rules of PAGE_REPORTING)."""
        return not (self.features & BalloonFeature.PAGE_POISON and self._poison)

    @property
    def poison_val(self) -> int:
        return self._poison

    def snapshot(self) -> tuple[int | None, int, int, int, int]:
        """Wish in bytes, num_pages, actual, free_page_hint_cmd_id, poison_val: for restore()."""
        return self._wish, self._num_pages, self._actual, self._cmd_id, self._poison

    def restore(
        self, wish: int | None, num_pages: int, actual: int, cmd_id: int, poison: int
    ) -> None:
        """Go on from a snapshot. Raises ValueError for what the config space cannot hold."""
        if any(not 0 <= value <= MAX_PAGES for value in (num_pages, actual, cmd_id, poison)):
            raise ValueError("a config space field does not fit 32 bits")
        self._wish, self._num_pages, self._actual = wish, num_pages, actual
        self._cmd_id, self._poison = cmd_id, poison

    def set_target(self, wish: int) -> bool:
        """Take a wish in bytes (> 0); True if the config space changed."""
        self._wish = wish
        return self._retarget()

    def set_memory_size(self, size: int) -> bool:
        """Take the size of guest memory in bytes; True if the config space changed."""
        self.memory_size = size
        return self._retarget()

    def _retarget(self) -> bool:
        if self._wish is None or self.memory_size == 0:
            return False
        pages = max(self.memory_size - self._wish, 0) >> PFN_SHIFT
        pages = min(pages, MAX_PAGES)
        changed = pages != self._num_pages
        self._num_pages = pages
        return changed

    def read_config(self, offset: int, size: int) -> bytes:
        """The config space's bytes. Raises FrontEndError outside of it."""
        _check_config_range(offset, size)
        return self._config()[offset : offset + size]

    def write_config(self, offset: int, data: bytes, *, migration: bool) -> bool:
        """Write what the writer may write; True if `actual` changed. Raises FrontEndError."""
        _check_config_range(offset, len(data))
        after = bytearray(self._config())
        after[offset : offset + len(data)] = data
        num_pages, actual, cmd_id, poison = CONFIG_SPACE.unpack(after)
        if migration:
            self._wish = None if num_pages != self._num_pages else self._wish
            self._num_pages, self._cmd_id = num_pages, cmd_id
        changed: bool = actual != self._actual
        self._actual, self._poison = actual, poison
        return changed

    def _config(self) -> bytes:
        return CONFIG_SPACE.pack(self._num_pages, self._actual, self._cmd_id, self._poison)

    def new_driver(self) -> bool:
        """A driver was loaded again (reboot, reload): it holds nothing; True if actual changed."""
        changed = self._actual != 0
        self._actual = 0
        self.stats.clear()
        return changed

    def reset(self) -> bool:
        """The device was reset: the poison value is gone too; True if actual changed."""
        self._poison = 0
        return self.new_driver()


def _check_config_range(offset: int, size: int) -> None:
    if size == 0 or offset + size > CONFIG_SIZE:
        raise FrontEndError(f"{size} bytes at {offset} are outside a config space of {CONFIG_SIZE}")
