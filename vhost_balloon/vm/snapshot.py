"""The snapshot of the VM: Vm.statistics() makes it, and an attached front end completes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from protocol.virtio_balloon import StatTag
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.statistics import HugePages, QueueStatistics, RegionStatistics, VmState
from vhost_balloon.vm.settings import VmSettings


@dataclass(frozen=True, slots=True)
class VmStatistics:
    """A snapshot of the VM. Sizes in bytes.

    target: memory for the guest to keep, None while neither an order nor the memory's size is
    known. pending: the target waits for the driver. actual: memory that the guest keeps, None
    before its size is known. balloon: memory in the balloon. resident: memory that the host spends
    on the guest, None without a front end. pause_reasons: why reports are acknowledged without
    being discarded (figures.refusal.PAUSE_REASONS), empty if they are discarded. pause_hint: why
    the daemon cannot see whether memory is pinned, and what to do. stats_interval: seconds, 0 for
    on demand only. report_rate: bytes a second of reports to discard. huge_pages:
    of the balloon, None where the host's pages are no larger than the balloon's.
    stats_last_update: host wall clock in whole seconds, 0 before the first sample. stats_age: in
    seconds. stats_taken: when the sample came, CLOCK_BOOTTIME in seconds; stats_actual: memory that
    the guest kept then. held: the host's policy leaves the VM alone, for held_for seconds, or for
    ever if that is None. counters and internal_errors (by place) are the live ones: read only.
    """

    id: str
    attached: bool
    counters: Counters
    settings: VmSettings | None = None
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
    pause_reasons: tuple[str, ...] = ()
    pause_hint: str | None = None
    queue_map_ambiguous: bool = False
    stats_interval: float = 0.0
    report_rate: int | None = None
    huge_pages: HugePages | None = None
    stats: Mapping[StatTag, int] = field(default_factory=dict)
    stats_last_update: int = 0
    stats_age: float | None = None
    stats_taken: float | None = None
    stats_actual: int | None = None
    held: bool = False
    held_for: float | None = None
    internal_errors: Mapping[str, int] = field(default_factory=dict)

    @property
    def reporting_paused(self) -> bool:
        """Reports are acknowledged without being discarded."""
        return bool(self.pause_reasons)
