"""The rivals against their published behaviour, and in small made-up situations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.rivals.mom import Mom
from tests.policy.rivals.none import Nothing
from tests.policy.rivals.oracle import Oracle
from tests.policy.rivals.proxmox import Candidate, Proxmox, balance
from tests.policy.rivals.static import Static
from tests.policy.rule import HostView, SampleView, VmView

GIB = 1024.0
HOST = HostView(available=16 * GIB, total=64 * GIB, some=0.0, line=2.28 * GIB)


def sample(actual: float, free: float) -> SampleView:
    return SampleView(
        taken=0,
        actual=actual,
        available=free,
        free=free,
        total=actual,
        faults=0.0,
        swapped_in=0.0,
        swapped_out=0.0,
    )


def vm(name: str = "a", actual: float = 4 * GIB, free: float | None = GIB) -> VmView:
    return VmView(
        name=name,
        size=4 * GIB,
        target=actual,
        actual=actual,
        resident=actual,
        sample=None if free is None else sample(actual, free),
        stats_interval=10,
        weight=100,
        has_driver=True,
        pinned=False,
    )


# Proxmox VE. Its own test works in decimal megabytes with steps of 100.

MB = 1_000_000
Vms = dict[str, Candidate]
Sizes = Mapping[str, int]

EVEN: Vms = {
    "100": Candidate(1000 * MB, 1000 * MB, 2000 * MB, shares=2000, free=0),
    "101": Candidate(1000 * MB, 1000 * MB, 2000 * MB, shares=1000, free=0),
}
ONE_FULL = EVEN | {"100": Candidate(2000 * MB, 2000 * MB, 2000 * MB, shares=2000, free=0)}
ONE_WITH_FREE = ONE_FULL | {
    "101": replace(EVEN["101"], size=1007 * MB),
    "102": replace(EVEN["101"], free=512 * MB),
}

ONCE: list[tuple[Vms, int, Sizes]] = [
    (EVEN, 0, {}),
    (EVEN, 90, {"100": 1060, "101": 1030}),
    (EVEN, 150, {"100": 1100, "101": 1050}),
    (EVEN, 270, {"100": 1100, "101": 1090}),
    (ONE_FULL, 0, {}),
    (ONE_FULL, 18, {"101": 1018}),
    (ONE_FULL, 500, {"101": 1100}),
    (ONE_WITH_FREE, 0, {}),
    (ONE_WITH_FREE, 11, {"101": 1018}),
    (ONE_WITH_FREE, 80, {"101": 1087}),
    (ONE_WITH_FREE, 200, {"101": 1107}),
]
TO_THE_END: list[tuple[Vms, list[int], Sizes]] = [
    (EVEN, [180], {"100": 1120, "101": 1060}),
    (EVEN, [270], {"100": 1180, "101": 1090}),
    (EVEN, [600], {"100": 1300, "101": 1300}),
    (EVEN, [900], {"100": 1600, "101": 1300}),
    (ONE_WITH_FREE, [593], {"101": 1300, "102": 1300}),
    (ONE_WITH_FREE, [593, -200], {"101": 1200, "102": 1200}),
    (ONE_WITH_FREE, [593, -400], {"101": 1200, "102": 1000}),
    (ONE_WITH_FREE, [593, -593], {"101": 1007, "102": 1000}),
]
"""Source: pve-manager, test/balloontest.pl. Goals and sizes in MB; the second table repeats the
rule until it changes nothing more."""


def repeated(vms: Vms, goal: int) -> tuple[Vms, dict[str, int]]:
    """Apply the rule until nothing changes; the VMs then, and the sizes of those that changed. What
    a VM is given is free in its guest, as far as there was any."""
    sizes: dict[str, int] = {}
    while changed := balance(vms, goal, 100 * MB):
        for name, size in changed.items():
            before = vms[name]
            change = size - before.size
            free = max(0, before.free + change)
            vms = vms | {name: replace(before, size=size, free=free)}
            goal -= change
        sizes |= changed
    return vms, sizes


@pytest.mark.parametrize(("vms", "goal", "sizes"), ONCE)
def test_proxmox_moves_as_published(vms: Vms, goal: int, sizes: Sizes) -> None:
    found = balance(vms, goal * MB, 100 * MB)
    assert found == {name: size * MB for name, size in sizes.items()}


@pytest.mark.parametrize(("vms", "goals", "sizes"), TO_THE_END)
def test_proxmox_settles_as_published(vms: Vms, goals: list[int], sizes: Sizes) -> None:
    found: Sizes = {}
    for goal in goals:
        vms, found = repeated(vms, goal * MB)
    assert found == {name: size * MB for name, size in sizes.items()}


amounts = st.integers(0, 64 << 30)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    least, size, most = sorted(draw(st.lists(amounts, min_size=3, max_size=3)))
    return Candidate(size, least, most, shares=draw(st.integers(10, 50_000)), free=draw(amounts))


@given(
    st.dictionaries(st.text("abcdef", max_size=2), candidates(), max_size=8),
    st.integers(-(64 << 30), 64 << 30),
)
def test_proxmox_keeps_its_limits(vms: Vms, goal: int) -> None:
    """Nobody leaves its limits or moves by more than a step; none grows while memory is wanted."""
    step = 100 << 20
    for name, size in balance(vms, goal, step).items():
        assert vms[name].least <= size <= vms[name].most
        assert abs(size - vms[name].size) <= step
        assert goal > 0 or size < vms[name].size


def test_proxmox_takes_a_step_from_who_has_free_memory() -> None:
    host = replace(HOST, available=4 * GIB)
    orders, polled = Proxmox().tick(0, host, [vm("a"), vm("b", free=200)])
    assert dict(orders) == {"a": 4 * GIB - 100}
    assert not polled


def test_proxmox_takes_from_who_is_short_if_nobody_else_can_give() -> None:
    host = replace(HOST, available=4 * GIB)
    orders, _ = Proxmox().tick(0, host, [vm("a", GIB), vm("b", free=None)])
    assert dict(orders) == {"b": 4 * GIB - 100}


def test_proxmox_does_without_vms_that_have_no_driver() -> None:
    vms = [replace(vm(), has_driver=False)]
    assert Proxmox().tick(0, replace(HOST, available=4 * GIB), vms) == ({}, ())


# MoM.


@pytest.mark.parametrize(
    ("available", "free", "target"),
    [
        pytest.param(0.1, 0.5, 0.95, id="by-a-step"),
        pytest.param(0.1, 0.12, 0.98, id="to-its-share-of-free-memory"),
        pytest.param(0.1, 0.05, None, id="no-growth-under-pressure"),
        pytest.param(0.1, 0.102, None, id="too-small-a-change"),
        pytest.param(0.02, 0.01, 0.96, id="into-swap"),
        pytest.param(0.02, 0.5, 0.95, id="never-by-more-than-a-step"),
    ],
)
def test_mom_shrinks_a_guest_under_pressure(
    available: float, free: float, target: float | None
) -> None:
    """All as shares: of the host that is available, of the guest that is free and that it keeps."""
    host = replace(HOST, available=available * HOST.total)
    orders, _ = Mom().tick(0, host, [vm(actual=2 * GIB, free=free * 2 * GIB)])
    expected = {} if target is None else {"a": pytest.approx(target * 2 * GIB)}
    assert dict(orders) == expected


@pytest.mark.parametrize(
    ("actual", "free", "target"),
    [
        pytest.param(2.0, 0.5, 2.1, id="by-a-step"),
        pytest.param(2.0, 0.05, 2.5, id="to-its-share-of-free-memory"),
        pytest.param(3.95, 0.5, 4.0, id="no-more-than-all"),
        pytest.param(3.995, 0.5, None, id="too-small-a-change"),
    ],
)
def test_mom_grows_every_guest_without_pressure(
    actual: float, free: float, target: float | None
) -> None:
    """In GiB; free is a share of what the guest has. 30 % of the host is available."""
    host = replace(HOST, available=0.3 * HOST.total)
    orders, _ = Mom().tick(0, host, [vm(actual=actual * GIB, free=free * actual * GIB)])
    expected = {} if target is None else {"a": pytest.approx(target * GIB)}
    assert dict(orders) == expected


def test_mom_goes_by_averages_and_decides_at_every_other_look() -> None:
    mom, low, high = Mom(), replace(HOST, available=GIB), replace(HOST, available=40 * GIB)
    assert mom.tick(0, low, [vm(actual=2 * GIB)])[0]
    assert not mom.tick(5, high, [vm(actual=2 * GIB)])[0]
    assert mom.tick(10, high, [vm(actual=2 * GIB)])[0]["a"] > 2 * GIB, "27 GiB on average"


def test_mom_leaves_a_guest_without_statistics() -> None:
    assert not Mom().tick(0, replace(HOST, available=GIB), [vm(free=None)])[0]


# The others.


def test_nothing_is_ordered_without_a_policy() -> None:
    assert Nothing().tick(0, replace(HOST, available=0.0), [vm()]) == ({}, ())


def test_static_gives_each_vm_its_part_of_the_host_once() -> None:
    static = Static()
    vms = [vm(f"{index}") for index in range(20)]
    part = (0.93 * 64 * GIB - 2 * GIB) / 20
    assert dict(static.tick(0, HOST, vms)[0]) == {one.name: pytest.approx(part) for one in vms}
    assert not static.tick(1, HOST, vms)[0]
    assert static.tick(2, HOST, vms[1:])[0]["1"] == pytest.approx(part * 20 / 19)


def test_static_takes_nothing_where_all_fit() -> None:
    assert dict(Static().tick(0, HOST, [vm()])[0]) == {"a": 4 * GIB}


def oracle(**demand: list[float]) -> Oracle:
    """One that knows these demands; they do not change after their end."""
    rule = Oracle()
    rule.bind(lambda name, second: demand[name][min(second, len(demand[name]) - 1)])
    return rule


def test_the_oracle_gives_before_it_is_needed() -> None:
    rule = oracle(a=[GIB] * 25 + [3 * GIB])
    squeezed = vm(actual=2 * GIB)
    for now in range(5):
        assert not rule.tick(now, HOST, [squeezed])[0]
    assert 3 * GIB < rule.tick(5, HOST, [squeezed])[0]["a"] < 3.2 * GIB


def test_the_oracle_takes_what_is_missing_from_who_needs_it_least() -> None:
    host = replace(HOST, available=3 * GIB)
    orders, _ = oracle(a=[GIB], b=[3.95 * GIB]).tick(0, host, [vm("a"), vm("b")])
    assert dict(orders) == {"a": pytest.approx(4 * GIB - (1.5 * HOST.line - host.available))}


def test_the_oracle_counts_what_is_on_its_way() -> None:
    host = replace(HOST, available=3 * GIB)
    assert not oracle(a=[GIB]).tick(0, host, [replace(vm(), target=3 * GIB)])[0]
