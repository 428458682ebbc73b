"""The scenarios: which guests on which host. Each is drawn anew for each seed. Sizes in MiB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from tests.policy.worlds import demand
from tests.policy.worlds.demand import GIB, LENGTH, Trace
from tests.policy.worlds.kinds import ANY_KIND, Cache, guest, of_size
from tests.policy.worlds.spec import GuestSpec
from tests.policy.worlds.world import Draw, Scenario, World, draw

Specs = list[GuestSpec]


def weighted(specs: Specs, every: int, weight: int) -> Specs:
    """Give every so many-th VM a weight."""
    return [
        replace(spec, weight=weight) if index % every == every - 1 else spec
        for index, spec in enumerate(specs)
    ]


def several(count: int, make: Callable[[Random, str], GuestSpec], first: int = 0) -> Draw:
    return lambda rng: [make(rng, f"vm{first + index}") for index in range(count)]


def mixture(
    sizes: Sequence[float], kinds: tuple[str, ...] = ANY_KIND, top_fill: float = 20
) -> Draw:
    """Guests "of M": of any of these kinds, in proportion to their size."""
    return lambda rng: [
        of_size(rng, f"vm{index}", size * GIB, kinds, top_fill) for index, size in enumerate(sizes)
    ]


def idle(rng: Random, name: str) -> GuestSpec:
    level = rng.uniform(1, 1.6) * GIB
    return guest(rng, name, 4 * GIB, "idle", demand.constant(level), Cache(1, 600))


def cache(rng: Random) -> Specs:
    def make(rng: Random, name: str) -> GuestSpec:
        level = rng.uniform(1, 1.8) * GIB
        held = Cache(rng.uniform(0, 30), 3 * GIB, rng.uniform(0, 600), 30)
        return guest(rng, name, 4 * GIB, "cache", demand.constant(level), held)

    return weighted(several(22, make)(rng), 3, 300)


def sawtooth(least: float, most: float) -> Callable[[Random, str], GuestSpec]:
    def make(rng: Random, name: str) -> GuestSpec:
        trace = demand.saw(rng, GIB, 1.9 * GIB)
        return guest(rng, name, 4 * GIB, "saw", trace, Cache(rng.uniform(least, most), 2.4 * GIB))

    return make


def sawread(rng: Random) -> Specs:
    return weighted(several(22, sawtooth(15, 30))(rng), 3, 300)


def bigburst(rng: Random, name: str) -> GuestSpec:
    trace = demand.saw(rng, 1.5 * GIB, 3 * GIB)
    return guest(rng, name, 8 * GIB, "saw", trace, Cache(rng.uniform(0, 30), 4 * GIB))


def diurnal(rng: Random) -> Specs:
    def make(rng: Random, name: str) -> GuestSpec:
        trace = demand.sine(0.7 * GIB, 2.4 * GIB, rng.choice((900, 1800)), rng.random())
        held = Cache(None, 2 * GIB, 300, 20)
        return guest(rng, name, 4 * GIB, "diurnal", trace, held)

    return weighted(several(24, make)(rng), 3, 300)


def jvm(rng: Random, name: str) -> GuestSpec:
    trace = demand.jvm(rng, 0.6 * GIB, 1.2 * GIB, 0.8 * GIB)
    return guest(rng, name, 4 * GIB, "jvm", trace, Cache(None, 2 * GIB))


def leak(rng: Random) -> Specs:
    def make(rng: Random, name: str) -> GuestSpec:
        return guest(rng, name, 8 * GIB, "leak", demand.leak(rng, GIB, 6.8 * GIB), Cache())

    others = several(14, lambda rng, name: of_size(rng, name, 4 * GIB), first=4)
    return several(4, make)(rng) + others(rng)


def bootstorm(rng: Random) -> Specs:
    def running(rng: Random, name: str) -> GuestSpec:
        trace = demand.constant(rng.uniform(0.9, 1.5) * GIB)
        return guest(rng, name, 4 * GIB, "idle", trace, Cache(None, 2 * GIB))

    def booting(rng: Random, name: str) -> GuestSpec:
        start = rng.randint(300, 360)
        level = rng.uniform(0.9, 1.5) * GIB
        trace = demand.ramps(0, [(start, 0), (start + 20, level)])
        spec = guest(rng, name, 4 * GIB, "boot", trace, Cache(5, 2 * GIB))
        return replace(spec, boots=start, driver=start + 15, boot_fill=100.0)

    return several(10, running)(rng) + several(20, booting, first=10)(rng)


def allgrow(rng: Random, name: str) -> GuestSpec:
    trace = demand.rise(
        rng.uniform(800, 1000),
        rng.uniform(10, 30),
        1.1 * GIB,
        rng.uniform(2.3, 2.6) * GIB,
        600,
    )
    return guest(rng, name, 4 * GIB, "grow", trace, Cache(None, 2.2 * GIB))


def scanner(rng: Random) -> Specs:
    def make(size: float, fill: Callable[[], float], name: str) -> GuestSpec:
        level = rng.uniform(1, 1.6) * GIB
        held = Cache(fill(), None, rng.uniform(200, 1000), rng.uniform(20, 60))
        return guest(rng, name, size * GIB, "scan", demand.constant(level), held)

    large = [make(8, lambda: 30, f"vm{index}") for index in range(8)]
    small = [make(4, lambda: rng.uniform(0, 10), f"vm{index}") for index in range(8, 16)]
    return weighted(large + small, 2, 200)


def host_bursts(rng: Random) -> Trace:
    """Three times, the host itself needs 3.5 to 4.5 GiB more within 2 s, for 120 to 300 s."""
    corners: list[tuple[float, float]] = []
    for start in (100, 650, 1200):
        begin = start + rng.uniform(0, 240)
        end = begin + rng.uniform(120, 300)
        level = rng.uniform(3.5, 4.5) * GIB
        corners += [(begin, 0), (begin + 2, level), (end, level), (end + 1, 0)]
    return demand.ramps(0, corners)


def liars(rng: Random) -> Specs:
    specs = mixture([4] * 22)(rng)
    chosen = rng.sample(range(22), 10)
    for index in chosen[:5]:
        specs[index] = replace(specs[index], claims=0.0)
    for index in chosen[5:]:
        specs[index] = replace(specs[index], claims=specs[index].size)
    return specs


def silent(rng: Random) -> Specs:
    falling = [of_size(rng, f"vm{index}", 4 * GIB, ("saw", "diurnal")) for index in range(5)]
    falling = [replace(spec, silent=rng.randint(200, 800)) for spec in falling]
    kinds = ("saw", "cache", "scan", "diurnal")
    others = [of_size(rng, f"vm{index}", 4 * GIB, kinds) for index in range(5, 23)]
    others[:3] = [replace(spec, silent=0) for spec in others[:3]]
    others[3:5] = [replace(spec, pinned=True) for spec in others[3:5]]
    others[5:7] = [replace(spec, reports=False) for spec in others[5:7]]
    others[7:10] = [replace(spec, least=0.8 * spec.size) for spec in others[7:10]]
    return falling + others


def false_alarms(rng: Random) -> Trace:
    """Pressure of 10 to 30 % for 5 to 15 s, every 25 to 75 s."""
    trace: Trace = []
    while len(trace) < LENGTH:
        period = rng.randint(25, 75)
        length = rng.randint(5, 15)
        trace += [rng.uniform(0.1, 0.3)] * length + [0.0] * (period - length)
    return trace[:LENGTH]


def mixed(rng: Random) -> Specs:
    specs = mixture([4] * 22)(rng)
    return [replace(spec, weight=200) if index < 6 else spec for index, spec in enumerate(specs)]


def uneven(rng: Random) -> Specs:
    def large(rng: Random, name: str) -> GuestSpec:
        trace = demand.sine(2 * GIB, 6.8 * GIB, 1800, rng.random())
        return guest(rng, name, 8 * GIB, "diurnal", trace, Cache(None, 7 * GIB))

    def small(rng: Random, name: str) -> GuestSpec:
        trace = demand.constant(rng.uniform(0.8, 1.4) * GIB)
        return guest(rng, name, 8 * GIB, "idle", trace, Cache(None, 7 * GIB))

    return several(5, large)(rng) + several(13, small, first=5)(rng)


def overgrow(rng: Random, name: str) -> GuestSpec:
    top = rng.uniform(2.75, 2.9) * GIB
    trace = demand.ramps(GIB, [(900, GIB), (900 + rng.uniform(30, 90), top)])
    return guest(rng, name, 4 * GIB, "grow", trace, Cache(rng.uniform(0, 30), 3 * GIB))


def over(rng: Random, name: str) -> GuestSpec:
    return guest(rng, name, 4 * GIB, "idle", demand.constant(3.1 * GIB), Cache())


SCENARIOS: dict[str, Scenario] = {
    "idle": Scenario(several(20, idle)),
    "cache": Scenario(cache),
    "sawtooth": Scenario(several(22, sawtooth(0, 10))),
    "sawread": Scenario(sawread),
    "bigburst": Scenario(several(14, bigburst)),
    "diurnal": Scenario(diurnal),
    "jvm": Scenario(several(22, jvm)),
    "leak": Scenario(leak),
    "bootstorm": Scenario(bootstorm),
    "allgrow": Scenario(several(20, allgrow)),
    "scanner": Scenario(scanner),
    "hostload": Scenario(
        mixture([4] * 20, ("idle", "cache", "scan", "diurnal")), extra=host_bursts
    ),
    "liars": Scenario(liars),
    "silent": Scenario(silent),
    "host16": Scenario(
        lambda rng: weighted(mixture([2] * 11)(rng), 3, 300),
        total=16 * GIB,
        swap=4 * GIB,
        own=GIB,
    ),
    "host256": Scenario(
        mixture([8, 8, 8, 12, 16] * 8, top_fill=30), total=256 * GIB, swap=0, own=6 * GIB
    ),
    "hotcache": Scenario(mixture([4] * 18), hot=12 * GIB),
    "psiflap": Scenario(
        mixture([4] * 16, ("idle", "diurnal", "jvm", "cache")), pressure=false_alarms
    ),
    "mixed": Scenario(mixed),
    "noswap": Scenario(mixed, swap=0),
    "uneven": Scenario(uneven),
    "overgrow": Scenario(several(22, overgrow), swap=0, winnable=False),
    "over": Scenario(several(22, over), winnable=False),
}


def world(scenario: str, seed: int) -> World:
    """The world of a scenario and a seed, the same each time."""
    return draw(scenario, SCENARIOS[scenario], seed)
