"""Three real guests in a memory cgroup that stands for their host, and what they do there.

Their sizes, 2 GiB in all, do not fit the limit. One reads for ever, one reads and then bursts,
one is idle. What they need always fits; what they need with all the cache they like never does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig.devices.disk import endless_and_swap, name_disks
from tests.rig.errors import RigTimeout
from tests.rig.host.cgroup import MemoryGroup
from tests.rig.inside import appetite
from tests.rig.memory import Memory, MiB
from tests.rig.waiting import wait_until
from tests.support.vms.guests import Attached, attached

LIMIT: Final = 1500 * MiB
RESERVE: Final = 350 * MiB
"""For the policy. With all room that guests may keep (256 MiB each), as much is available."""
CACHE: Final = 450 * MiB
"""What the burster reads before it bursts: with the reader's, more cache than fits the limit."""
BURST: Final = 320 * MiB
"""More than a squeezed burster has available."""
NEEDED: Final = 137 * MiB + BURST
"""What the burster has to have then: its kernel uses the rest."""
SECONDS: Final = 60.0
"""In which a burst gets its memory, beyond the time that it takes to ask for it."""
SWAPPED: Final = 16 * MiB
"""Less than this is no swapping: a kernel moves a few pages when its cache is taken."""

_SIZES: Final = {"reader": 768 * MiB, "burster": 768 * MiB, "idle": 512 * MiB}
_SWAP: Final = 512 * MiB
_READ_SPEED: Final = 12 * MiB


@dataclass(frozen=True)
class Guests:
    """folder: of the control sockets, NAME.control."""

    group: MemoryGroup
    folder: Path
    reader: Attached
    burster: Attached
    idle: Attached

    def all(self) -> dict[str, Attached]:
        return {"reader": self.reader, "burster": self.burster, "idle": self.idle}

    def targets(self) -> dict[str, int]:
        return {name: one.vm()["target"] for name, one in self.all().items()}


@contextmanager
def three_guests(folder: Path) -> Iterator[Guests]:
    """Booted, with swap, and idle. folder: for their sockets and swap.

    Raises RigUnavailable where there is no memory cgroup to be had.
    """
    with ExitStack() as stack:
        group = stack.enter_context(MemoryGroup("vhost-balloon-policy", LIMIT))

        booted = {}
        for name, size in _SIZES.items():
            swap = folder / f"{name}.swap"
            swap.touch()
            os.truncate(swap, _SWAP)
            one = stack.enter_context(
                attached(
                    control=folder / f"{name}.control",
                    memory=Memory(size),
                    launcher=group.launcher(),
                    qemu_arguments=endless_and_swap(_READ_SPEED, swap),
                )
            )
            name_disks(one.guest)
            appetite.turn_swap_on(one.guest)
            booted[name] = one
        yield Guests(group, folder, **booted)


def fill_caches(guests: Guests) -> None:
    """The reader starts to read for ever; the burster reads CACHE bytes."""
    appetite.read(guests.reader.guest)
    appetite.read(guests.burster.guest, CACHE).wait(300)


def burst(guests: Guests) -> float:
    """The burster allocates BURST bytes, holds them for a moment and frees them.

    Returns:
        The seconds until it held them and had NEEDED bytes.

    Raises:
        RigTimeout: it did not within SECONDS.
        GuestError: something was killed.
    """
    burst = appetite.Burst(guests.burster.guest, BURST, 1.0)

    def is_served() -> bool:
        return burst.is_complete() and guests.burster.vm()["actual"] >= NEEDED

    def failure() -> Exception:
        held, actual = burst.held() // MiB, guests.burster.vm()["actual"] // MiB
        return RigTimeout(f"the burst holds {held} MiB, its guest has {actual} MiB")

    took = wait_until(is_served, SECONDS + burst.least_seconds, failure, pause=1)
    burst.end()
    return took
