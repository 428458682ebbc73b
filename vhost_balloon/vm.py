"""The VMs of this daemon: one a configured front-end socket, attached or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from protocol.virtio_balloon import StatTag
from vhost_balloon.containment import InternalErrors
from vhost_balloon.convergence import VmState
from vhost_balloon.counters import Counters
from vhost_balloon.errors import CommandError
from vhost_balloon.gathering import HugePages
from vhost_balloon.guest_memory import RegionStatistics
from vhost_balloon.heartbeat import Heartbeat
from vhost_balloon.log import VmLog
from vhost_balloon.rate import MESSAGE_BURST, MESSAGE_RATE, Bucket
from vhost_balloon.rings import QueueStatistics
from vhost_balloon.state import (
    Document,
    counters_document,
    counters_mark,
    flag,
    number,
    reading,
    real,
    restore_counters,
)
from vhost_balloon.store import Scope, Store
from vhost_balloon.vm_settings import VmSettings
from vhost_balloon.vm_spec import VmSpec

if TYPE_CHECKING:
    from vhost_balloon.backend import FrontEndConnection
    from vhost_balloon.inert import InertConnection
    from vhost_balloon.record import Record


@dataclass(frozen=True, slots=True)
class VmStatistics:
    """A snapshot of one VM. Sizes in bytes.

    spec: as the operator wishes it. leaving: it goes when its front end does.
    target: what the guest is to keep, None while neither a wish nor the memory's size is known.
    pending: a target waits for the driver. actual: what the guest keeps, None before its memory
    is known. balloon: what it has in the balloon. resident: what the host spends on its memory,
    None without a front end. stats_last_update: host wall clock in whole seconds, 0 before the
    first sample; stats_age in seconds. reporting_paused: reports are acknowledged without being
    discarded; pause_reasons say why ("operator", or refusal.Refusal's words). stats_interval in
    seconds, 0 for on demand only. report_rate: bytes a second that reports may have discarded.
    huge_pages: of the balloon, None where the host's pages are no larger than its. counters are
    the live ones, to be read only.
    """

    id: str
    attached: bool
    counters: Counters
    spec: VmSpec | None = None
    leaving: bool = False
    socket_path: Path | None = None
    front_end_pid: int | None = None
    features: int = 0
    protocol_features: int = 0
    queues: tuple[QueueStatistics, ...] = ()
    regions: tuple[RegionStatistics, ...] = ()
    guest_memory: int = 0
    target: int | None = None
    pending: bool = False
    actual: int | None = None
    balloon: int = 0
    resident: int | None = None
    driver_ready: bool = False
    state: VmState = VmState.DISCONNECTED
    reporting_paused: bool = False
    pause_reasons: tuple[str, ...] = ()
    queue_map_ambiguous: bool = False
    stats_interval: float = 0.0
    report_rate: int | None = None
    huge_pages: HugePages | None = None
    stats: Mapping[StatTag, int] = field(default_factory=dict)
    stats_last_update: int = 0
    stats_age: float | None = None


CRASH_MEMORY: Final = 600.0
"""Seconds after which a crash does not count together with the next one."""

UNSEALED: Final = (
    "which would put all VMs of this daemon at risk: use memory-backend-memfd, one daemon per VM, "
    "or --allow-unsealed-memory"
)
"""Why memory that could shrink is refused where VMs share a daemon, and what helps."""

NOT_ACTIVATED: Final = "No balloon device has been activated"
"""QEMU's words."""

Listener = Callable[["Vm"], None]


class Machine:
    """All VMs by id, in the order of their configuration."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        *,
        allow_unsealed_memory: bool = False,
        store: Store | None = None,
    ) -> None:
        """allow_unsealed_memory: several VMs, although one could truncate its memory."""
        self.store: Final = Store() if store is None else store
        self.proc: Final = proc
        self.allow_unsealed_memory: Final = allow_unsealed_memory
        self.vms: dict[str, Vm] = {}
        self.heartbeat: Final = Heartbeat()
        self.internal_errors: Final = InternalErrors()
        self.arriving: Callable[[], bool] = lambda: False
        """Whether a front end is being accepted that is not attached yet; set by the fleet."""
        self._listeners: list[Listener] = []

    def add(self, spec: VmSpec) -> Vm:
        vm = self.vms[spec.id] = Vm(spec, self)
        return vm

    def remove(self, vm: Vm) -> None:
        """Forget a VM, and with it all that was counted of it."""
        del self.vms[vm.id]

    @property
    def require_sealed(self) -> bool:
        """Whether guest memory must not be able to shrink: it would end the other VMs, too."""
        sockets = sum(vm.socket_path is not None for vm in self.vms.values())
        return sockets > 1 and not self.allow_unsealed_memory

    def add_listener(self, callback: Listener) -> None:
        """Have callback called after a VM's actual has changed. What it raises ends here."""
        self._listeners.append(callback)

    def remove_listener(self, callback: Listener) -> None:
        self._listeners.remove(callback)

    def actual_changed(self, vm: Vm) -> None:
        for callback in tuple(self._listeners):
            try:
                callback(vm)
            except Exception as error:
                self.internal_errors.record("events", error)


class Vm:
    """One configured VM. Its target belongs to the front end, its counters to the VM."""

    def __init__(self, spec: VmSpec, machine: Machine) -> None:
        self.spec = spec
        self.leaving = False
        self.machine = machine
        self.counters = Counters()
        self.log = VmLog(spec.id)
        self.connection: FrontEndConnection | None = None
        self.inert: InertConnection | None = None
        """A front end that is served without a device; there is no connection then."""
        self.record: Record | None = None
        self.scope = Scope(machine.store)
        """Holds the record; replaced with it by one that was left."""
        self.crashes = 0
        self._crashed_at = -CRASH_MEMORY
        """How often this front end's connection ended this program by a bug."""
        self._saved: tuple[float, ...] = ()
        self.messages: Final = Bucket(MESSAGE_RATE, MESSAGE_BURST)
        """What its front ends may send, one after the other."""
        self._paused = False
        self._stats_interval = spec.settings.stats_interval
        self.stats_interval_changed = trio.Event()

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def settings(self) -> VmSettings:
        return self.spec.settings

    @property
    def socket_path(self) -> Path | None:
        """Where its front end connects, an absolute path; None if it is connected already."""
        return self.spec.socket_path

    def change(self, spec: VmSpec) -> None:
        """Take other settings, of the same name and path.

        The statistics interval counts at once if it is another; everything else is for the next
        front end, which negotiates features anew.
        """
        changed = spec.settings.stats_interval != self.settings.stats_interval
        self.spec = spec
        self.save()
        if changed:
            self.stats_interval = spec.settings.stats_interval

    @property
    def store(self) -> Store:
        return self.machine.store

    @property
    def attached(self) -> bool:
        return self.front_end is not None

    @property
    def front_end(self) -> FrontEndConnection | InertConnection | None:
        """Who is attached, served or only answered."""
        return self.connection or self.inert

    # What outlives this process

    def save(self) -> None:
        """Put the VM on its record, if it has one. Raises ValueError if it does not fit."""
        if self.record is not None:
            self.save_to(self.record)

    def save_to(self, record: Record) -> None:
        record.save(
            "vm",
            {
                "spec": self.spec.to_json(),
                "paused": self.paused,
                "stats-interval": self.stats_interval,
                "leaving": self.leaving,
                "crashes": [self.crashes, self._crashed_at],
            },
        )
        record.save("counters", counters_document(self.counters))

    def save_counters(self) -> None:
        """What is shown of them must never be less later: save before showing."""
        if self.record is None:
            return
        mark = counters_mark(self.counters)
        if mark != self._saved:
            self._saved = mark
            self.record.save("counters", counters_document(self.counters))

    def restore_orders(self, document: Document) -> None:
        """Raises StateError."""
        with reading("vm"):
            paused = flag(document["paused"])
            interval = real(document["stats-interval"])
            crashes, crashed_at = number(document["crashes"][0]), real(document["crashes"][1])
        self._paused = paused
        self._stats_interval = interval
        self.crashes, self._crashed_at = crashes, crashed_at

    def restore_counters(self, document: Document) -> None:
        """Raises StateError."""
        restore_counters(self.counters, document)

    def forget(self) -> None:
        """It is removed: drop its record."""
        if self.record is not None:
            self.record.close()
            self.record = None
            self.scope.flush()

    def crashed(self) -> None:
        """A bug in serving its front end ends this process."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.crashes = self.crashes + 1 if now - self._crashed_at < CRASH_MEMORY else 1
        self._crashed_at = now
        self.save()

    @property
    def stats_interval(self) -> float:
        """Seconds between two samples; 0 for none but on demand."""
        return self._stats_interval

    @stats_interval.setter
    def stats_interval(self, seconds: float) -> None:
        self._stats_interval = seconds
        self.save()
        changed, self.stats_interval_changed = self.stats_interval_changed, trio.Event()
        changed.set()

    @property
    def paused(self) -> bool:
        """Whether the operator paused reporting discards; it outlives front ends."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self.save()
        if self.connection is not None:
            self.connection.pause(paused)

    async def fresh_stats(self, seconds: float) -> VmStatistics:
        """Ask the guest for statistics and wait for them, for so many seconds at most.

        Raises CommandError without a front end, without statistics, or in vain.
        """
        if self.connection is None:
            raise CommandError(NOT_ACTIVATED, "DeviceNotActive")
        with trio.move_on_after(seconds):
            await self.connection.fresh_stats()
            return self.statistics()
        raise CommandError(f"the guest gave no statistics within {seconds:g} s")

    def set_target(self, value: int) -> None:
        """Have the guest keep value bytes (> 0). Raises CommandError without a front end."""
        if self.connection is None:
            raise CommandError(NOT_ACTIVATED, "DeviceNotActive")
        self.connection.set_target(value)

    def statistics(self, *, details: bool = True) -> VmStatistics:
        """A snapshot, with queues and regions unless details are not wanted. Never waits."""
        self.save_counters()
        if self.inert is not None:
            return self._inert_statistics()
        if self.connection is None:
            return VmStatistics(
                self.id,
                False,
                self.counters,
                spec=self.spec,
                leaving=self.leaving,
                socket_path=self.socket_path,
                reporting_paused=self.paused,
                pause_reasons=("operator",) if self.paused else (),
                stats_interval=self.stats_interval,
                report_rate=self.settings.report_rate,
            )
        return self.connection.statistics(details=details)

    def _inert_statistics(self) -> VmStatistics:
        return VmStatistics(
            self.id,
            True,
            self.counters,
            spec=self.spec,
            leaving=self.leaving,
            socket_path=self.socket_path,
            state=VmState.INERT,
            reporting_paused=True,
            pause_reasons=(VmState.INERT.value,),
            stats_interval=self.stats_interval,
        )
