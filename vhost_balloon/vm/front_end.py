"""What others ask of an attached front end, which front_end/ serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vhost_balloon.vm.snapshot import VmStatistics

if TYPE_CHECKING:
    from vhost_balloon.store.record import Record


class StateKeeper(Protocol):
    """Writes an attached front end's state for the next process."""

    def save_all(self, record: Record) -> None:
        """Write everything. Raises ValueError if it does not fit."""


class Orders(Protocol):
    """Orders for an attached device (front_end/orders.py)."""

    def state_memory(self, size: int | None) -> None:
        """Take the operator's word for the guest's memory: bytes, or None to judge."""

    async def order(self, value: int, seconds: int | None = None) -> None:
        """Carry out an operator's order, which makes a hold, as hold(seconds) does: judge how much
        memory the guest has, which may wait for a sample, not long; then set_target(value).

        Raises CommandError.
        """

    def policy_order(self, value: int) -> None:
        """Carry out an order of the host's policy. Never waits.

        Raises CommandError while an operator holds the VM, without a driver, and if it turns out
        that the guest has other memory than the policy was told.
        """

    def set_target(self, value: int) -> None:
        """Set the guest's target to value bytes (> 0).

        The config space shows it on return, if guest memory is known and there is a driver. If not,
        it waits for both.
        """

    def hold(self, seconds: int | None) -> None:
        """Keep the host's policy from changing the target; for ever if seconds is None."""

    def release(self) -> None:
        """End a hold."""


class FrontEnd(Protocol):
    """What others ask of an attached front end (front_end/)."""

    @property
    def keeper(self) -> StateKeeper: ...

    @property
    def orders(self) -> Orders | None:
        """None without a device: its requests are acknowledged, and nothing is done for it."""

    def statistics(self, known: VmStatistics, *, details: bool) -> VmStatistics:
        """Complete a snapshot; with queues and regions if details are wanted. Never waits."""

    def pause(self, paused: bool) -> None:
        """Acknowledge reports without discarding them, or discard them again."""

    def request_stats(self) -> None:
        """Request statistics. Raises CommandError if none can come."""

    async def fresh_stats(self) -> None:
        """Request statistics and wait for them. Raises CommandError if none can come."""

    async def disconnect(self) -> None:
        """End the connection, and wait until everything is released."""

    async def hold(self) -> None:
        """Stop between two messages until release(), which is due even if this is cancelled;
        return as well once the front end has gone."""

    async def release(self) -> None:
        """End a hold, or cancel one that is still being waited for."""
