"""QEMU's own balloon and ours behind one interface, for tests that hold on both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.rig import qemu
from tests.rig.guest import Guest
from tests.rig.memory import Memory, MiB
from tests.rig.qmp import QMPClient
from tests.rig.waiting import wait_until
from tests.support.vms.guests import attached

Balloon = Literal["QEMU", "daemon"]
BALLOONS: Final[tuple[Balloon, ...]] = ("QEMU", "daemon")
MOSTLY_OURS: Final = BALLOONS if os.environ.get("VHOST_BALLOON_COMPARE") else BALLOONS[1:]
"""For situations in which QEMU's balloon was measured once and ours is tested each time."""
_PAGE: Final = 4096


@dataclass(frozen=True)
class Figures:
    """What is seen of a guest from outside and inside, in bytes.

    Attributes:
        actual: query-balloon's answer.
        balloon: pages in the guest's balloon.
        free: the guest's free memory.
        resident: what the host spends on the guest's memory.
    """

    actual: int
    balloon: int
    free: int
    resident: int


@dataclass(frozen=True)
class Side:
    """A guest with one of the two balloons.

    Attributes:
        qmp: takes the balloon's orders: QEMU's or the daemon's control socket.
        device: the balloon's id there.
    """

    kind: Balloon
    guest: Guest
    qmp: QMPClient
    device: str

    @property
    def is_ours(self) -> bool:
        return self.kind == "daemon"

    def actual(self) -> int:
        """query-balloon's answer, in bytes."""
        return int(self.qmp.execute("query-balloon")["actual"])

    def balloon(self) -> int:
        """Bytes in the guest's balloon, as the guest counts them."""
        counters = self.guest.vmstat()
        return (counters["balloon_inflate"] - counters["balloon_deflate"]) * _PAGE

    def order(self, size: int) -> None:
        """Set the guest's memory in bytes, and wait until its balloon does not change any more."""
        self.qmp.execute("balloon", {"value": size})
        self.settle()

    def settle(self, timeout: float = 30) -> None:
        """Wait until the guest's balloon has not changed for a second."""
        seen = -1

        def steady() -> bool:
            nonlocal seen
            before, seen = seen, self.balloon()
            return seen == before

        wait_until(steady, timeout, pause=1.0)

    def figures(self) -> Figures:
        """All that there is to compare, now."""
        free = self.guest.meminfo()["MemFree"]
        return Figures(self.actual(), self.balloon(), free, self.guest.resident())

    def wait_sample(self, timeout: float = 20) -> dict[str, int]:
        """Wait for a sample of the guest's statistics that was asked for after this call."""
        before = self._stats()["last-update"]
        wait_until(lambda: self._stats()["last-update"] > before, timeout)
        stats: dict[str, int] = self._stats()["stats"]
        return stats

    def poll_stats(self) -> None:
        """Have statistics polled every second, which QEMU does not do by itself."""
        self.qmp.execute("qom-set", self._property("guest-stats-polling-interval") | {"value": 1})

    def _stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.qmp.execute("qom-get", self._property("guest-stats"))
        return answer

    def _property(self, name: str) -> dict[str, Any]:
        return {"path": f"/machine/peripheral/{self.device}", "property": name}


@contextmanager
def with_balloon(
    kind: Balloon, *options: str, memory: Memory | None = None, **guest_options: Any
) -> Iterator[Side]:
    """A guest of 512 MiB (or memory) with one of the two balloons, booted, its driver ready.

    options: the daemon's.
    """
    memory = memory or Memory(512 * MiB)
    if kind == "daemon":
        with attached(*options, memory=memory, **guest_options) as both:
            yield _polled(Side(kind, both.guest, both.qmp, both.vm()["id"]))
    else:
        with Guest("qemu", memory=memory, **guest_options) as guest:
            yield _polled(Side(kind, guest, guest.qmp, qemu.DEVICE_ID))


def _polled(side: Side) -> Side:
    side.poll_stats()
    side.wait_sample()
    return side
