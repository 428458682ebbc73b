"""Guests that use memory: page cache that grows for ever, anonymous memory in bursts, and swap."""

from __future__ import annotations

from typing import Final

from tests.rig.devices.disk import ENDLESS, SWAP
from tests.rig.guest import Guest
from tests.rig.job import Job
from tests.rig.memory import MiB

_STEP: Final = 16 * MiB


def turn_swap_on(guest: Guest) -> None:
    """Swap to the disk SWAP."""
    guest.run(f"mkswap {SWAP} && swapon {SWAP}")


def swapped(guest: Guest) -> int:
    """Bytes that the guest has moved to and from swap since it booted."""
    counts = guest.vmstat()
    return (counts["pswpin"] + counts["pswpout"]) * 4096


def read(guest: Guest, size: int | None = None) -> Job:
    """Read the disk ENDLESS: size bytes (whole MiB) of it, or for ever. Its cache stays."""
    # The kernel drops a disk's cache when nobody has the disk open.
    guest.run(f"sleep 1000000 <{ENDLESS} >/dev/null 2>&1 &")
    amount = "" if size is None else f"count={size // MiB}"
    return guest.spawn(f"dd if={ENDLESS} of=/dev/null bs=1M {amount}")


class Burst:
    """Anonymous memory that grows to size bytes (whole steps of 16 MiB) and stays until end().

    A buffer of dd's that a pipe does not take holds each step.

    Args:
        seconds: between two steps.

    Attributes:
        least_seconds: that it takes to ask for all.
    """

    def __init__(self, guest: Guest, size: int, seconds: float) -> None:
        self.size = size
        self.least_seconds = size // _STEP * seconds
        self._guest = guest
        guest.run("rm -rf /run/burst && mkdir /run/burst && mkfifo /run/burst/end")
        hold = "{ head -c1 | wc -c >>/run/burst/held; cat /run/burst/end; }"
        step = f"dd if=/dev/zero bs={_STEP} count=1 2>/dev/null | {hold} &"
        loop = f"for step in $(seq {size // _STEP}); do {step} sleep {seconds}; done; wait"
        self._job = guest.spawn(loop)

    def held(self) -> int:
        """Bytes allocated by now."""
        count = self._guest.run("grep -c 1 /run/burst/held || true")
        return int(count.strip() or 0) * _STEP

    def is_complete(self) -> bool:
        return self.held() == self.size

    def end(self, timeout: float = 60) -> None:
        """Free it. Raises CommandError or RigTimeout."""
        # For a while, because the last step may not wait for the end yet.
        self._guest.run("sleep 3 >/run/burst/end")
        self._job.wait(timeout)
