"""The VM that this process serves, attached or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from protocol.examiner import PATH as EXAMINER
from protocol.qmp import ErrorClass
from vhost_balloon import clock
from vhost_balloon.checked import Document, flag, number, reading, real
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import CommandError
from vhost_balloon.fds import shut_down
from vhost_balloon.figures.counters import (
    Counters,
    counters_document,
    restore_counters,
)
from vhost_balloon.figures.discard_policy import DiscardMode
from vhost_balloon.figures.refusal import OPERATOR
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.log.lines import VmLog
from vhost_balloon.memory.pin_guard import prospect
from vhost_balloon.pace.wakefulness import Wakefulness
from vhost_balloon.store.descriptors import CONNECTION, Store
from vhost_balloon.vm.front_end import FrontEnd, Orders
from vhost_balloon.vm.settings import VmSettings, settings_from_json, settings_to_json
from vhost_balloon.vm.snapshot import VmStatistics

if TYPE_CHECKING:
    from vhost_balloon.store.journal import Journal
    from vhost_balloon.store.record import Record
    from vhost_balloon.store.reply_pipe import ReplyPipe
    from vhost_balloon.store.shelf import Shelf


MAX_PATH: Final = 107
"""Longest path of a Unix socket, in bytes (unix(7))."""
CRASH_MEMORY: Final = 600.0
"""Seconds after which a crash no longer adds to the next one."""

Listener = Callable[["Vm"], None]


def not_activated(detail: str = "") -> CommandError:
    """The error for a VM without a balloon, in QEMU's words; detail is appended."""
    text = f"No balloon device has been activated{detail}"
    return CommandError(text, ErrorClass.DEVICE_NOT_ACTIVE.value)


class Vm:
    """The VM. It outlives its front ends: counters are the VM's, the target is the front end's."""

    def __init__(
        self,
        name: str,
        settings: VmSettings | None = None,
        socket_path: Path | None = None,
        *,
        store: Store | None = None,
        proc: Path = Path("/proc"),
        examiner: Path = Path(EXAMINER),
    ) -> None:
        """socket_path: where its front end connects (absolute); None if it is connected already.

        proc, examiner: where to look whether a front end has memory pinned, and the socket of the
        one to ask instead.
        """
        self.id: Final = name
        self.settings = VmSettings() if settings is None else settings
        self.socket_path: Final = socket_path
        self.store: Final = Store() if store is None else store
        self.proc: Final = proc
        self.examiner: Final = examiner
        self.wakefulness: Final = Wakefulness()
        self.internal_errors: Final = InternalErrors()
        self.counters = Counters()
        self.log = VmLog(name)
        self.front_end: FrontEnd | None = None
        """The attached front end, served or only answered."""
        self.next_waits: Callable[[], Awaitable[None]] = trio.sleep_forever
        """Waits until another front end waits at the socket (daemon/front_ends.py)."""
        self.order_answered = trio.Event()
        """Set, except from an order to disconnect until its reply was sent."""
        self.order_answered.set()
        self.waits_for_lock = False
        """The VM is not served yet: the previous process still has it and cannot be killed. Users
        see the state "stuck", which also stands for a guest that does not follow its target; the
        two are told apart by `connected`."""
        self.record: Record | None = None
        self.shelf: Shelf | None = None
        self.pipe: ReplyPipe | None = None
        """What outlives this process; set before a front end is served (restart/taking_over.py)."""
        self.has_new_target = False
        """The target in the settings was changed since the previous process read them."""
        self.crashes = 0
        """How often serving this front end crashed this program."""
        self._crashed_at = -CRASH_MEMORY
        self._paused = False
        self._stats_interval = self.settings.stats_interval
        self.stats_interval_changed = trio.Event()
        self.status_changed = trio.Event()
        """Set when a front end comes or goes; replaced by the task that waits for it."""
        self.counted = trio.Event()
        """Set when counters change; replaced by the task that waits for it."""
        self._listeners: list[Listener] = []

    def change(self, settings: VmSettings) -> None:
        """Replace the settings.

        A changed statistics interval, and the guest's memory, apply at once; everything else
        applies to the next front end, which negotiates features anew.
        """
        before, self.settings = self.settings, settings
        self.save()
        if settings.stats_interval != before.stats_interval:
            self.stats_interval = settings.stats_interval
        if settings.memory != before.memory and (orders := self._orders()) is not None:
            orders.state_memory(settings.memory)

    @property
    def attached(self) -> bool:
        return self.front_end is not None

    # Listeners

    def add_listener(self, callback: Listener) -> None:
        """Call callback after each change of actual. Its exceptions are contained here."""
        self._listeners.append(callback)

    def remove_listener(self, callback: Listener) -> None:
        self._listeners.remove(callback)

    def actual_changed(self) -> None:
        for callback in tuple(self._listeners):
            try:
                callback(self)
            except Exception as error:
                self.internal_errors.record("events", error)

    # What outlives this process

    @property
    def saved_to(self) -> Record | None:
        """The record, if it is in a service manager's store."""
        return self.record if self.store.active else None

    @property
    def journal(self) -> Journal | None:
        """The journal of saved_to."""
        return None if self.saved_to is None else self.saved_to.journal

    def save(self) -> None:
        """Write orders and counters to the record. Raises ValueError if they do not fit."""
        if self.saved_to is not None:
            self.save_to(self.saved_to)

    def save_to(self, record: Record) -> None:
        record.save(
            "vm",
            {
                "name": self.id,
                "socket-path": self._recorded_path(),
                "settings": settings_to_json(self.settings),
                "paused": self.paused,
                "stats-interval": self.stats_interval,
                "crashes": {"count": self.crashes, "last": self._crashed_at},
            },
        )
        record.save("counters", counters_document(self.counters))

    def _recorded_path(self) -> str | None:
        """The front-end socket's path, if a socket can have it."""
        path = None if self.socket_path is None else str(self.socket_path)
        return path if path is not None and len(path) <= MAX_PATH else None

    def save_counters(self) -> None:
        """Save before showing: a counter that was shown must never be lower later."""
        if self.saved_to is not None:
            self.saved_to.save("counters", counters_document(self.counters))

    def close(self) -> None:
        """Stop writing to the record. The store keeps what it has."""
        if self.shelf is not None:
            self.shelf.close()
        for part in (self.record, self.pipe):
            if part is not None:
                part.close()
        self.record = self.shelf = self.pipe = None

    async def forget_front_end(self, name: str) -> None:
        """Drop what outlives this process of a front end that has gone. name: its socket's, in the
        store."""
        if self.shelf is not None:
            self.shelf.clear()
        await self.store.remove(name)

    def restore_orders(self, document: Document) -> None:
        """Restore orders. An order that overrode a setting holds until that setting changes.

        Raises StateError.
        """
        with reading("vm"):
            paused = flag(document["paused"])
            interval = real(document["stats-interval"])
            before = settings_from_json(document["settings"], VmSettings())
            crashes = number(document["crashes"]["count"])
            crashed_at = real(document["crashes"]["last"])
        self._paused = paused
        if before.stats_interval == self.settings.stats_interval:
            self._stats_interval = interval
        self.has_new_target = before.target != self.settings.target
        self.crashes, self._crashed_at = crashes, crashed_at

    def restore_counters(self, document: Document) -> None:
        """Raises StateError."""
        restore_counters(self.counters, document)

    def crashed(self) -> None:
        """Count a bug in serving the front end, which ends this process."""
        now = clock.boottime()
        self.crashes = self.crashes + 1 if now - self._crashed_at < CRASH_MEMORY else 1
        self._crashed_at = now
        self.save()

    @property
    def stats_interval(self) -> float:
        """Seconds between two samples; 0: only on demand."""
        return self._stats_interval

    @stats_interval.setter
    def stats_interval(self, seconds: float) -> None:
        self._stats_interval = seconds
        self.save()
        changed, self.stats_interval_changed = self.stats_interval_changed, trio.Event()
        changed.set()

    @property
    def paused(self) -> bool:
        """Whether the operator paused reporting discards; the pause outlives front ends."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self.save()
        if self.front_end is not None:
            self.front_end.pause(paused)

    async def fresh_stats(self, seconds: float) -> VmStatistics:
        """Request statistics from the guest and wait for them for at most seconds.

        Raises CommandError if there is no front end, or no statistics come.
        """
        if self.front_end is None:
            raise not_activated()
        with trio.move_on_after(seconds):
            await self.front_end.fresh_stats()
            return self.statistics()
        raise CommandError(f"the guest gave no statistics within {seconds:g} s")

    def _orders(self) -> Orders | None:
        return None if self.front_end is None else self.front_end.orders

    def device(self) -> Orders:
        """Where to give orders to the guest's device. Raises CommandError if there is none."""
        if (orders := self._orders()) is None:
            raise not_activated()
        return orders

    def request_stats(self) -> None:
        """Request statistics from the guest. Raises CommandError if none can come."""
        if self.front_end is None:
            raise not_activated()
        self.front_end.request_stats()

    async def disconnect(self) -> None:
        """End the front end's connection, and wait until everything is released.

        A connection that waits for the lock ends as well. Raises CommandError without a front end.
        """
        left = self.store.left(CONNECTION)
        if self.front_end is None and not left:
            raise not_activated(f": VM '{self.id}' has no front end")
        # Not among the lines that the front end's coming and going can use up.
        self.log.warning("the operator disconnects the front end")
        self.order_answered = trio.Event()
        if self.front_end is not None:
            await self.front_end.disconnect()
        for name in left:
            shut_down(self.store.look(name))
            await self.store.remove(name)

    def statistics(self, *, details: bool = True) -> VmStatistics:
        """A snapshot; with queues and regions if details are wanted. Never waits."""
        self.save_counters()
        known = VmStatistics(
            self.id,
            self.attached,
            self.counters,
            settings=self.settings,
            socket_path=self.socket_path,
            state=VmState.STUCK if self.waits_for_lock else VmState.DISCONNECTED,
            pause_reasons=(OPERATOR,) if self.paused else (),
            stats_interval=self.stats_interval,
            report_rate=self.settings.report_rate,
            internal_errors=self.internal_errors.counts,
        )
        if self.front_end is not None:
            return self.front_end.statistics(known, details=details)
        is_open = self.settings.access.mode & 0o077  # to front ends of other users
        if is_open and self.settings.policy.mode is DiscardMode.AUTO:
            return replace(known, pause_hint=prospect(self.examiner))
        return known
