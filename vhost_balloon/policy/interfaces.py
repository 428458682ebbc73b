"""What the policy needs of others: VMs to ask and to order (hub/), figures of the host, the right
to decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vhost_balloon.policy.inputs import HostFigures, VmFigures
from vhost_balloon.policy.settings import PolicySettings


@dataclass(frozen=True, slots=True)
class Policed:
    """A VM that has answered. held: by a manual order. held_for: seconds until the hold ends, None
    for no end or no hold."""

    figures: VmFigures
    held: bool = False
    held_for: float | None = None


class Vms(Protocol):
    """The VMs of the host, by name. Every call takes bounded time, whatever a VM's daemon does."""

    async def look(
        self, settings: PolicySettings, poll: Collection[str], only: Collection[str] | None = None
    ) -> Mapping[str, Policed]:
        """The VMs whose daemons answer, with their settings. poll: those whose guests are asked for
        statistics first. only: those to look at; None for all, of which some may be new."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why a VM did not answer when it was last looked at."""

    @property
    def problems(self) -> Sequence[str]:
        """Lines for the operator: why VMs may be missing, by the last look for new ones."""

    @property
    def failure(self) -> str:
        """Why that look may have missed VMs; "" if it missed none."""

    async def order(self, targets: Mapping[str, int]) -> Mapping[str, str]:
        """Set targets, in bytes, marked as the policy's. Returns why an order was refused."""

    async def hold(self, name: str, seconds: int | None) -> None:
        """Leave a VM alone, for ever or for a time. Raises CommandError."""

    async def release(self, name: str) -> None:
        """End a VM's hold. Raises CommandError."""

    def close(self) -> None:
        """Close all connections; the next call opens them again."""


class Host(Protocol):
    """The host's memory. read() is called in a thread, because a file system may hang."""

    def read(self, now: float) -> HostFigures:
        """Raises HostUnreadable."""

    def close(self) -> None:
        """Close its files."""


class HostUnreadable(Exception):
    """The host's memory cannot be read; the text says why, in one line."""


class Lock(Protocol):
    """The right to decide on this host."""

    @property
    def is_partial(self) -> bool:
        """It was taken without a folder that was not there. VMs that were found since may lie in
        it: take it again before they are ordered."""

    async def try_take(self) -> str | None:
        """Take or keep it. None: this process has it. Otherwise why not, in one line."""

    def release(self) -> None:
        """Let others have it."""
