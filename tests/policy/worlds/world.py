"""A world: a host and its guests, drawn before any rule acts. Every rule sees the same one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random

from tests.policy.worlds.demand import GIB, LENGTH, Trace, sine
from tests.policy.worlds.host import USABLE, HostSpec
from tests.policy.worlds.kinds import scaled
from tests.policy.worlds.spec import GuestSpec

FREE_AT_START = 0.28
"""Share of the host."""


@dataclass(frozen=True)
class World:
    """A scenario with a seed."""

    scenario: str
    seed: int
    host: HostSpec
    guests: tuple[GuestSpec, ...]

    @cached_property
    def _by_name(self) -> dict[str, GuestSpec]:
        return {spec.name: spec for spec in self.guests}

    def future(self, name: str, second: int) -> float:
        """A guest's true demand at a second, with the cache that it uses all the time; the last
        one's after the end, 0 before it boots."""
        spec = self._by_name[name]
        return spec.demand[min(second, LENGTH - 1)] + spec.hot if second >= spec.boots else 0.0


Draw = Callable[[Random], list[GuestSpec]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a world is drawn from. guests: draws them. total, swap, own: the host's memory, swap and
    own use in MiB. extra, pressure: draw what the host uses, and how long tasks wait, besides. hot:
    the cache that the host needs itself. winnable: whether any rule can keep the host."""

    guests: Draw
    total: float = 64 * GIB
    swap: float = 8 * GIB
    own: float = 2 * GIB
    extra: Callable[[Random], Trace] | None = None
    pressure: Callable[[Random], Trace] | None = None
    hot: float = 0.0
    winnable: bool = True


def draw(name: str, scenario: Scenario, seed: int) -> World:
    """Draw a world."""
    rng = Random(f"{name}:{seed}")
    swing = 0.3 * GIB
    load = sine(scenario.own - swing, scenario.own + swing, rng.uniform(200, 900), rng.random())
    if scenario.extra is not None:
        load = [own + more for own, more in zip(load, scenario.extra(rng), strict=True)]
    pressure = [0.0] * LENGTH if scenario.pressure is None else scenario.pressure(rng)
    host = HostSpec(scenario.total, scenario.swap, load, pressure, scenario.hot)
    room = (USABLE - FREE_AT_START) * scenario.total - load[0]
    return World(name, seed, host, tuple(scaled(scenario.guests(rng), room)))
