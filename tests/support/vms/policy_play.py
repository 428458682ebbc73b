"""Three real guests in a memory cgroup that stands for their host, which is too small for them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig.cgroup import MemoryGroup
from tests.rig.devices.disk import endless_and_swap, name_disks
from tests.rig.inside import appetite
from tests.rig.memory import Memory, MiB
from tests.support.vms.guests import Attached, attached

LIMIT: Final = 1500 * MiB
RESERVE: Final = 300 * MiB
BURST: Final = 400 * MiB
_SIZES: Final = {"reader": 768 * MiB, "burster": 768 * MiB, "idle": 512 * MiB}
_SWAP: Final = 512 * MiB
_READ_SPEED: Final = 20 * MiB


@dataclass(frozen=True)
class Guests:
    """folder: of the control sockets, NAME.control."""

    group: MemoryGroup
    folder: Path
    reader: Attached
    burster: Attached
    idle: Attached

    def all(self) -> tuple[Attached, ...]:
        return self.reader, self.burster, self.idle


@contextmanager
def three_guests(folder: Path) -> Iterator[Guests]:
    """Booted, with swap, and idle. folder: for their sockets and swap."""
    with ExitStack() as stack:
        group = stack.enter_context(MemoryGroup("vhost-balloon-policy", LIMIT))

        def boot(name: str) -> Attached:
            swap = folder / f"{name}.swap"
            with swap.open("wb") as file:
                file.truncate(_SWAP)
            return stack.enter_context(
                attached(
                    control=folder / f"{name}.control",
                    memory=Memory(_SIZES[name]),
                    launcher=group.launcher(),
                    qemu_arguments=endless_and_swap(_READ_SPEED, swap),
                )
            )

        with ThreadPoolExecutor() as pool:
            reader, burster, idle = pool.map(boot, _SIZES)
        guests = Guests(group, folder, reader, burster, idle)
        for one in guests.all():
            name_disks(one.guest)
            appetite.turn_swap_on(one.guest)
        yield guests
