"""The balloon device as its guest sees it: features, config space, target, statistics. Pure.

Source: virtio specification, "Traditional Memory Balloon Device".

Config space rules:
- num_pages and free_page_hint_cmd_id belong to the device. Guest writes to them are ignored, never
  refused, because QEMU writes all 16 bytes back, whatever the guest changed.
- poison_val arrives before the features. It is stored then, and matters once PAGE_POISON is
  negotiated. It survives ring stops; a device reset or a new connection clears it.
- The operator's target is in bytes. num_pages follows from it and the size of guest memory, which
  the front end tells only when the driver starts, and which hot-plug changes.
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
        self._target: int | None = None
        self._num_pages = 0
        self._actual = 0
        self._cmd_id = CMD_ID_STOP
        self._poison = 0

    @property
    def target(self) -> int:
        """Bytes that the guest is to keep. All of its memory unless a target was set."""
        if self._target is not None and self.memory_size == 0:
            return self._target
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
    def has_target(self) -> bool:
        """Whether this daemon's operator set a target."""
        return self._target is not None

    @property
    def balloon_size(self) -> int:
        """Bytes in the balloon, by the guest's account."""
        return self._actual << PFN_SHIFT

    @property
    def may_drop_reported(self) -> bool:
        """Whether reported pages may lose their content: the poison rules of PAGE_REPORTING."""
        return not (self.features & BalloonFeature.PAGE_POISON and self._poison)

    def snapshot(self) -> tuple[int | None, int, int, int, int]:
        """For restore(): target in bytes, num_pages, actual, free_page_hint_cmd_id, poison_val."""
        return self._target, self._num_pages, self._actual, self._cmd_id, self._poison

    def restore(
        self, target: int | None, num_pages: int, actual: int, cmd_id: int, poison: int
    ) -> None:
        """Continue from a snapshot. Raises ValueError if the config space cannot hold it."""
        if any(not 0 <= value <= MAX_PAGES for value in (num_pages, actual, cmd_id, poison)):
            raise ValueError("a config space field does not fit 32 bits")
        self._target, self._num_pages, self._actual = target, num_pages, actual
        self._cmd_id, self._poison = cmd_id, poison

    def set_target(self, target: int) -> bool:
        """Set the target in bytes (> 0). Returns whether the config space changed."""
        self._target = target
        return self._update_num_pages()

    def set_memory_size(self, size: int) -> bool:
        """Set the size of guest memory in bytes. Returns whether the config space changed."""
        self.memory_size = size
        return self._update_num_pages()

    def _update_num_pages(self) -> bool:
        if self._target is None or self.memory_size == 0:
            return False
        pages = max(self.memory_size - self._target, 0) >> PFN_SHIFT
        pages = min(pages, MAX_PAGES)
        changed = pages != self._num_pages
        self._num_pages = pages
        return changed

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
            if num_pages != self._num_pages:
                self._target = None
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
        return changed

    def reset(self) -> bool:
        """The device was reset, which also clears the poison. Returns whether `actual` changed."""
        self._poison = 0
        return self.new_driver()


def _check_config_range(offset: int, size: int) -> None:
    if size == 0 or offset + size > CONFIG_SIZE:
        raise FrontEndError(f"{size} bytes at {offset} are outside a config space of {CONFIG_SIZE}")
