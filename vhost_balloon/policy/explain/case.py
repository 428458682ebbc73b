"""One VM at a tick, and the phrases that the sentences about it have in common. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote
from typing import Final

from vhost_balloon.policy.constants import DISTRESS, HOLD
from vhost_balloon.policy.decide import Decision, HostState, occupied
from vhost_balloon.policy.inputs import VmFigures
from vhost_balloon.policy.settings import Mode
from vhost_balloon.sizes import format_size

CTL: Final = "vhost-balloonctl"


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of a VM."""

    name: str
    vm: VmFigures
    decision: Decision
    host: HostState
    mode: Mode
    held_for: float | None

    @property
    def operand(self) -> str:
        """The name as an operand of a command in a shell."""
        return ("-- " if self.name.startswith("-") else "") + quote(self.name)

    @property
    def available(self) -> str:
        return f"{format_size(max(self.host.available, 0))} available"

    @property
    def reserve(self) -> str:
        return format_size(self.host.reserve)

    @property
    def age(self) -> str:
        return seconds_text(self.decision.age or 0)

    def asked(self, done: str, why: str) -> str:
        """The sentence for an order."""
        was = "was" if self.mode is Mode.ON else "would be"
        order = format_size(self.decision.target)
        return f"{self.name} {was} {done} from {format_size(self.vm.target)} to {order}, {why}."

    @property
    def failed(self) -> str:
        """The sentences for an order that was not accepted."""
        before, order = format_size(self.vm.target), format_size(self.decision.target)
        return (
            f"{self.name} was to be moved from {before} to {order}, which failed: "
            f"{self.decision.detail}. It is not asked for memory for {seconds_text(HOLD)}. It "
            "still gets more if it needs it. Its daemon's log may say more."
        )

    def left(self, why: str, *more: str) -> str:
        """The sentences for no order."""
        is_left = "would be" if self.mode is Mode.DRY_RUN else "is"
        return " ".join((f"{self.name} {is_left} left alone: {why}.", *more))

    @property
    def withheld(self) -> str:
        """The sentences for a VM without an order while memory goes back by order, and the policy
        itself moves nothing."""
        does = "is off" if self.mode is Mode.OFF else "makes a dry run"
        text = f"{self.name} is left alone: the policy {does}."
        if not self.vm.squeezed:
            return text
        return f"{text} It gets more while the host has more than {self.reserve} available."

    @property
    def held_back(self) -> str:
        """What to expect of a target below the ceiling; "" where there is nothing to say."""
        if not self.vm.squeezed or self.host.plenty:
            return ""
        return (
            f" It gets more, up to its ceiling of {format_size(self.vm.ceiling)}, as soon as it "
            f"needs it, or once the host has more than {format_size(2 * self.host.reserve)} "
            "available."
        )

    @property
    def keeps(self) -> str:
        """What the rule leaves it."""
        used, keep = self.decision.demand, min(self.decision.keep, self.vm.size)
        if keep <= self.vm.floor:
            return f"Its guest uses {format_size(used)}; it keeps its floor, {format_size(keep)}."
        room = f"may keep {format_size(keep - used)} on top (k = {self.host.k:.2f})"
        return f"Its guest uses {format_size(used)} and {room}."

    @property
    def occupied(self) -> int:
        """What it could give at most, in bytes."""
        return occupied(self.host, self.vm)

    @property
    def need(self) -> str:
        """How its guest shows that it needs more."""
        sample = self.vm.sample
        if sample is not None and sample.available < self.host.k * self.vm.slack * DISTRESS:
            return f"Its guest has only {format_size(sample.available)} available."
        return (
            "At its last statistics its guest had little available, had taken memory back by "
            "itself, or read again what it had to drop."
        )


def seconds_text(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
