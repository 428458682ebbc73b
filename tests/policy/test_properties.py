"""What holds for any host, any VMs, any statistics and any past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.figures.policy_reason import ORDERS, Reason
from vhost_balloon.policy.constants import SILENT, STALE, TICK
from vhost_balloon.policy.decide import HostState, Outcome, decide, judge
from vhost_balloon.policy.inputs import HostFigures, Sample, VmFigures, VmSettings
from vhost_balloon.policy.memory import from_document, to_document

MIB = 1 << 20
TOTAL = 64 << 10
RESERVE = 6 << 10

mib = st.integers(0, 16 << 10)
odd = st.one_of(mib, st.just(1 << 40))
obstacles = st.sampled_from(
    [None, None, None, Reason.OFF, Reason.MANUAL, Reason.NO_DRIVER, Reason.INERT, Reason.PINNED]
)


@st.composite
def settings(draw: st.DrawFn) -> VmSettings:
    floor, ceiling = sorted((draw(mib), draw(mib)))
    return VmSettings(
        weight=draw(st.integers(1, 1000)),
        floor=draw(st.sampled_from([None, floor * MIB])),
        ceiling=draw(st.sampled_from([None, (ceiling + 1) * MIB])),
    )


@st.composite
def vms(draw: st.DrawFn, now: float) -> VmFigures:
    size = draw(st.integers(128, 16 << 10))
    sample = Sample(
        now - draw(st.floats(0, 60)),
        draw(mib) * MIB,
        draw(odd) * MIB,
        draw(st.one_of(st.none(), st.integers(0, 10_000))),
    )
    return VmFigures(
        draw(st.sampled_from(["first", "second"])),
        size * MIB,
        draw(st.integers(0, size)) * MIB,
        draw(st.integers(0, size)) * MIB,
        draw(st.integers(0, size)) * MIB,
        draw(st.sampled_from([None, sample, sample])),
        draw(settings()),
        draw(obstacles),
    )


@st.composite
def hosts(draw: st.DrawFn) -> HostState:
    available = draw(st.integers(-1024, TOTAL)) * MIB
    some = draw(st.sampled_from([0.0, 0.0, 0.2, 1.0]))
    return judge(HostFigures(available, TOTAL * MIB, some), RESERVE * MIB)


@st.composite
def plays(draw: st.DrawFn) -> list[tuple[float, HostState, dict[str, VmFigures]]]:
    """A few ticks, between which anything may change."""
    ticks = []
    for number in range(draw(st.integers(1, 4))):
        now = 100 + number * TICK
        names = draw(st.sets(st.sampled_from("abcd"), max_size=4))
        ticks.append((now, draw(hosts()), {name: draw(vms(now)) for name in sorted(names)}))
    return ticks


def play(
    ticks: list[tuple[float, HostState, dict[str, VmFigures]]],
) -> list[tuple[float, HostState, dict[str, VmFigures], Outcome]]:
    played = []
    memory: Mapping[str, object] = {}
    for now, host, figures in ticks:
        outcome = decide(now, host, figures, memory)  # type: ignore[arg-type]
        memory = outcome.memory
        played.append((now, host, figures, outcome))
    return played


@given(plays())
def test_no_order_leaves_the_bounds_of_its_vm(
    ticks: list[tuple[float, HostState, dict[str, VmFigures]]],
) -> None:
    for now, _, figures, outcome in play(ticks):
        assert outcome.decisions.keys() == figures.keys() == outcome.memory.keys()
        for name, decision in outcome.decisions.items():
            vm = figures[name]
            assert (decision.target is not None) == (decision.reason in ORDERS)
            if decision.target is None:
                continue
            assert vm.may_be_given
            assert vm.obstacle is None or decision.target > vm.target
            assert vm.floor <= decision.target
            if decision.target > max(vm.target, vm.ceiling):
                assert (decision.reason, decision.target) == (Reason.STUCK, vm.actual)
            if decision.target < vm.target:
                assert vm.sample is not None
                assert now - vm.sample.taken <= (SILENT if vm.squeezed else STALE)
                assert not decision.distress
                assert decision.target >= decision.demand


@given(plays())
def test_no_more_is_asked_in_a_tick_than_is_missing(
    ticks: list[tuple[float, HostState, dict[str, VmFigures]]],
) -> None:
    for _, host, figures, outcome in play(ticks):
        asked = sum(
            min(figures[name].actual, figures[name].resident) - decision.target
            for name, decision in outcome.decisions.items()
            if decision.reason is Reason.RECLAIM and decision.target is not None
        )
        assert asked <= max(host.reserve - host.available, 0)


@given(plays(), st.integers(1, 8192))
def test_more_available_never_asks_for_more(
    ticks: list[tuple[float, HostState, dict[str, VmFigures]]], more: int
) -> None:
    *before, (now, host, figures) = ticks
    memory = play(before)[-1][3].memory if before else {}
    richer = judge(HostFigures(host.available + more * MIB, host.total, 0.0), host.reserve)

    def asked(of: HostState) -> int:
        told = decide(now, of, figures, memory).decisions
        return sum(
            min(figures[name].actual, figures[name].resident) - (decision.target or 0)
            for name, decision in told.items()
            if decision.reason is Reason.RECLAIM
        )

    assert asked(richer) <= asked(replace(host, spare=0)) + 16 * MIB * len(figures)


@given(plays())
def test_the_same_input_gives_the_same_decisions_and_is_left_as_it_was(
    ticks: list[tuple[float, HostState, dict[str, VmFigures]]],
) -> None:
    first, second = play(ticks), play(ticks)
    assert first == second
    now, host, figures, outcome = first[-1]
    written = to_document(outcome.memory)
    decide(now + TICK, host, figures, outcome.memory)
    assert to_document(outcome.memory) == written


@given(plays())
def test_memory_survives_being_written_down(
    ticks: list[tuple[float, HostState, dict[str, VmFigures]]],
) -> None:
    _, _, _, outcome = play(ticks)[-1]
    read = from_document(to_document(outcome.memory))
    assert read == {
        name: replace(vm, current=False, unanswered=None) for name, vm in outcome.memory.items()
    }


@given(plays())
def test_with_plenty_and_nobody_squeezed_nothing_is_ordered(
    ticks: list[tuple[float, HostState, dict[str, VmFigures]]],
) -> None:
    plenty = judge(HostFigures(3 * RESERVE * MIB, TOTAL * MIB, 0.5), RESERVE * MIB)
    calm = [
        (
            now,
            plenty,
            {n: replace(vm, target=vm.size, actual=vm.size) for n, vm in figures.items()},
        )
        for now, _, figures in ticks
    ]
    for _, _, _, outcome in play(calm):
        assert [d.target for d in outcome.decisions.values() if d.target is not None] == []
