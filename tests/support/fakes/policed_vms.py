"""A made-up host and its VMs for the policy: all that goes wrong with real ones can happen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tests.support.helpers import GIB
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import TICK
from vhost_balloon.policy.decide import HostState
from vhost_balloon.policy.inputs import HostFigures, Sample, VmFigures
from vhost_balloon.policy.interfaces import HostUnreadable, Policed
from vhost_balloon.policy.memory_file import MemoryFile
from vhost_balloon.policy.past import Order
from vhost_balloon.policy.runner import Policy
from vhost_balloon.policy.settings import Mode, PolicySettings
from vhost_balloon.threads import T, Thread

SIZE = 4 * GIB
SHORT = GIB // 2
WELL = GIB * 3 // 2
PLENTY = 8 * GIB
"""Available with a reserve of 1 GiB."""


@dataclass
class FakeVm:
    """A guest that uses demand and fills the rest with page cache.

    least: it cannot go below. claims: what it says is available, None for the truth. sampled: the
    time of its last statistics, None for now. held: by a manual order.
    """

    demand: int = GIB
    actual: int = SIZE
    target: int = SIZE
    least: int = 0
    claims: int | None = None
    sampled: float | None = None
    gives_statistics: bool = True
    answers: bool = True
    refuses: str = ""
    held: bool = False
    front_end: int = 1
    orders: list[int] = field(default_factory=list)

    def policed(self, name: str, settings: PolicySettings, now: float) -> Policed:
        self.actual = max(self.target, self.least)
        available = max(self.actual - self.demand, 0) if self.claims is None else self.claims
        taken = now if self.sampled is None else self.sampled
        figures = VmFigures(
            guest=f"{name}:{self.front_end}",
            size=SIZE,
            actual=self.actual,
            target=self.target,
            resident=self.actual,
            sample=Sample(taken, self.actual, available, 0) if self.gives_statistics else None,
            settings=settings.of(name),
            obstacle=Reason.MANUAL if self.held else None,
        )
        return Policed(figures, self.held)


class FakeHost:
    """A host, its VMs, its lock. takes: seconds for a look, and for orders."""

    def __init__(self, count: int = 2, available: int = 16 * GIB, total: int = 16 * GIB) -> None:
        self.guests = {f"web{n}": FakeVm() for n in range(1, count + 1)}
        self.available = available
        self.total = total
        self.some = 0.0
        self.unreadable = ""
        self.missing = ""
        """Why the host's files cannot be opened."""
        self.holder: str | None = None
        self.is_partial = False
        """Whether folders are not there to be locked."""
        self.hangs = False
        """Whether its files do."""
        self.takes = 0.0
        self.looks: list[tuple[float, list[str]]] = []
        """When the VMs were looked at, and which were asked for statistics."""
        self.left_out: Mapping[str, str] = {}
        self.problems: Sequence[str] = ()
        self.failure = ""
        self.seen: list[set[str]] = []
        """The VMs that were looked at."""
        self.is_open = self.has_connections = self.is_locked = False
        self.clock_offset = 1000.0
        self.told: list[tuple[HostState, Sequence[Order]]] = []

    def clock(self) -> float:
        return trio.current_time() + self.clock_offset

    def in_use(self) -> set[str]:
        """What a policy has open: files, connections, the lock."""
        kinds = {"files": self.is_open, "connections": self.has_connections, "lock": self.is_locked}
        return {kind for kind, is_used in kinds.items() if is_used}

    def policy(
        self,
        mode: Mode = Mode.ON,
        file: MemoryFile | None = None,
        settings: PolicySettings | None = None,
    ) -> Policy:
        return Policy(
            self,
            self.open,
            PolicySettings(mode=mode, reserve=GIB) if settings is None else settings,
            FakeLock(self),
            file,
            lambda host, orders: self.told.append((host, orders)),
            self.clock,
            NoThread(),
        )

    # Host

    def open(self, settings: PolicySettings) -> FakeFiles:
        self._hang()
        if self.missing:
            raise OperatorError(self.missing)
        self.is_open = True
        return FakeFiles(self)

    def _hang(self) -> None:
        if self.hangs:
            raise trio.TooSlowError

    # Vms

    async def look(
        self, settings: PolicySettings, poll: Collection[str], only: Collection[str] | None = None
    ) -> Mapping[str, Policed]:
        self.looks.append((trio.current_time(), sorted(poll)))
        self.seen.append({*self.guests} if only is None else {*self.guests} & {*only})
        self.has_connections = True
        await trio.sleep(self.takes)
        now = self.clock()
        silent = [name for name, vm in self.guests.items() if not vm.answers]
        self.left_out = dict.fromkeys(silent, "no answer")
        return {
            name: vm.policed(name, settings, now)
            for name, vm in list(self.guests.items())
            if vm.answers and (only is None or name in only)
        }

    async def order(self, targets: Mapping[str, int]) -> Mapping[str, str]:
        refused = {}
        await trio.sleep(self.takes)
        for name, target in targets.items():
            vm = self.guests.get(name)
            if vm is None or vm.refuses or vm.held:
                refused[name] = "gone" if vm is None else vm.refuses or "held"
            else:
                vm.target = target
                vm.orders.append(target)
        return refused

    async def hold(self, name: str, seconds: int | None) -> None:
        self._guest(name).held = True

    async def release(self, name: str) -> None:
        self._guest(name).held = False

    def _guest(self, name: str) -> FakeVm:
        self.has_connections = True
        if name not in self.guests or self.guests[name].refuses:
            raise CommandError(f"Device '{name}' not found")
        return self.guests[name]

    def close(self) -> None:
        self.has_connections = False
        self.left_out = {}


class NoThread(Thread):
    """Calls at once: the clock of tests jumps while threads run."""

    async def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        return call()


class FakeFiles:
    """The host's open files."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    def read(self, now: float) -> HostFigures:
        self._host._hang()
        if self._host.unreadable:
            raise HostUnreadable(self._host.unreadable)
        return HostFigures(self._host.available, self._host.total, self._host.some)

    def close(self) -> None:
        self._host.is_open = False


class FakeLock:
    """The host's lock, which host.holder may have."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    @property
    def is_partial(self) -> bool:
        return self._host.is_partial

    async def try_take(self) -> str | None:
        self._host.is_locked = self._host.holder is None
        return self._host.holder

    def release(self) -> None:
        self._host.is_locked = False


# Running a policy


@asynccontextmanager
async def running(policy: Policy) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(policy.run)
        yield
        nursery.cancel_scope.cancel()


async def ticks(count: int) -> None:
    """Let so many ticks begin and end."""
    await trio.sleep(count * TICK - TICK / 2)


def reason(policy: Policy, name: str = "web1") -> Reason:
    return policy.report().vms[name].decision.reason


async def squeezed(host: FakeHost) -> None:
    """Let a running policy squeeze the VMs, and the host be well again."""
    host.available = SHORT
    await trio.sleep(3 * TICK)
    host.available = WELL
    await trio.sleep(TICK)
    assert all(vm.target < SIZE for vm in host.guests.values())
