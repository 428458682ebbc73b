"""The kinds of guests, and what is drawn for each. Sizes in MiB."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import NamedTuple

from tests.policy.worlds import demand
from tests.policy.worlds.demand import GIB, Trace
from tests.policy.worlds.guest import LEAST_WATERMARK, WATERMARK
from tests.policy.worlds.spec import GuestSpec

ANY_KIND = ("idle", "diurnal", "saw", "jvm", "scan", "cache")


class Cache(NamedTuple):
    """Page cache: filled by fill MiB/s up to limit; below hot it is read again by up to reread
    MiB/s. None: drawn as for most guests."""

    fill: float | None = None
    limit: float | None = None
    hot: float = 0.0
    reread: float = 0.0


def guest(
    rng: Random, name: str, size: float, kind: str, trace: Trace, cache: Cache, top_fill: float = 20
) -> GuestSpec:
    """A guest with everything drawn that the scenario does not say."""
    fill = rng.uniform(0, top_fill) if cache.fill is None else cache.fill
    limit = size * rng.uniform(0.4, 0.6) if cache.limit is None else cache.limit
    return GuestSpec(
        name,
        kind,
        size,
        trace,
        cache=rng.uniform(0.1, 0.6) * limit,
        cache_limit=limit,
        fill=fill,
        hot=cache.hot,
        reread=cache.reread,
        maps=rng.random() < 0.5,
        swap=0.0 if rng.random() < 0.4 else size / 2,
        deflates_on_oom=rng.random() < 0.9,
        inflate=rng.uniform(512, 2048),
        dropped_share=rng.choice((0.0, 0.0, 0.05, 0.2)),
        kept=rng.uniform(0.03, 0.15),
        delay=rng.choice((1, 1, 2)),
        phase=rng.randrange(10),
    )


def of_size(
    rng: Random, name: str, size: float, kinds: tuple[str, ...] = ANY_KIND, top_fill: float = 20
) -> GuestSpec:
    """A guest of any of these kinds, in proportion to its size."""
    kind = rng.choice(kinds)
    cache = Cache()
    if kind == "idle":
        trace, cache = demand.constant(0.2 * size), Cache(fill=rng.uniform(0, 2))
    elif kind == "diurnal":
        trace = demand.sine(0.2 * size, 0.6 * size, rng.choice((900, 1800)), rng.random())
    elif kind == "saw":
        trace = demand.saw(rng, 0.22 * size, min(3 * GIB, 0.45 * size))
    elif kind == "jvm":
        trace = demand.jvm(rng, 0.15 * size, 0.27 * size, 0.18 * size)
    elif kind == "scan":
        trace = demand.constant(0.25 * size)
        cache = Cache(30, size, 0.15 * size, rng.uniform(20, 60))
    else:
        trace = demand.constant(0.25 * size)
        cache = Cache(None, 0.6 * size, 0.2 * size, rng.uniform(10, 40))
    return guest(rng, name, size, kind, trace, cache, top_fill)


def scaled(specs: list[GuestSpec], room: float) -> list[GuestSpec]:
    """Scale the caches at the start so that all guests that run then occupy room MiB together, or
    as near to it as their limits allow."""
    low, high = 0.0, 64.0
    for _ in range(40):
        middle = (low + high) / 2
        if sum(_occupied(spec, _fitting(spec, middle)) for spec in specs) < room:
            low = middle
        else:
            high = middle
    return [replace(spec, cache=_fitting(spec, low)) for spec in specs]


def _fitting(spec: GuestSpec, factor: float) -> float:
    if spec.boots:
        return 0.0
    free = spec.size - spec.demand[0] - max(LEAST_WATERMARK, WATERMARK * spec.size)
    return max(0.0, min(spec.cache * factor, spec.cache_limit, free))


def _occupied(spec: GuestSpec, cache: float) -> float:
    if spec.boots:
        return 0.0
    if spec.pinned:
        return spec.size
    used = spec.demand[0] + cache
    return used + spec.kept * (spec.size - used)
