"""Which of several orders that are judged at once holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.front_end.precedence import Precedence

MANUAL, POLICY = False, True


def carried_out(kinds: list[bool], steps: list[int]) -> list[int]:
    """The orders that are carried out, by number, in this order. steps: each is the number of an
    order, which comes at the first and is judged at the second."""
    precedence, turns, found = Precedence(), {}, []
    for number in steps:
        if number not in turns:
            turns[number] = precedence.begin(policy=kinds[number])
        elif precedence.end(turns[number]):
            found.append(number)
    return found


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[bool], list[int]]:
    """Kinds of orders, and steps; orders are numbered as they come."""
    kinds = draw(st.lists(st.booleans(), min_size=1, max_size=7))
    steps = draw(st.permutations([*range(len(kinds))] * 2))
    arrivals = list(dict.fromkeys(steps))
    return kinds, [arrivals.index(number) for number in steps]


def comes(steps: list[int], number: int) -> int:
    return steps.index(number)


def judged(steps: list[int], number: int) -> int:
    return len(steps) - 1 - steps[::-1].index(number)


@given(histories())
def test_the_newest_manual_order_wins(history: tuple[list[bool], list[int]]) -> None:
    kinds, steps = history
    found = carried_out(kinds, steps)
    manual = [number for number, policy in enumerate(kinds) if not policy]
    if manual:
        newest = manual[-1]
        assert newest in found
        after = found[found.index(newest) + 1 :]
        assert all(comes(steps, number) > judged(steps, newest) for number in after)


@given(histories())
def test_an_order_of_the_policy_never_meets_a_manual_one(
    history: tuple[list[bool], list[int]],
) -> None:
    kinds, steps = history
    found = carried_out(kinds, steps)
    for number in found:
        if kinds[number] is POLICY:
            for other, kind in enumerate(kinds):
                apart = (
                    judged(steps, other) < comes(steps, number)
                    or comes(steps, other) > judged(steps, number)
                )  # fmt: skip
                assert kind is POLICY or apart


@given(histories())
def test_orders_are_carried_out_as_they_came(history: tuple[list[bool], list[int]]) -> None:
    found = carried_out(*history)
    assert found == sorted(found)
    assert found, "at least one"


@given(histories())
def test_among_orders_of_one_kind_the_newest_holds(
    history: tuple[list[bool], list[int]],
) -> None:
    kinds, steps = history
    for kind in (MANUAL, POLICY):
        assert carried_out([kind] * len(kinds), steps)[-1] == len(kinds) - 1


def test_a_manual_order_wins_though_it_came_first_and_is_judged_last() -> None:
    assert carried_out([MANUAL, POLICY], [0, 1, 1, 0]) == [0]
    assert carried_out([POLICY, MANUAL], [0, 1, 0, 1]) == [1]
    assert carried_out([POLICY, MANUAL], [0, 1, 1, 0]) == [1]
    assert carried_out([MANUAL, POLICY], [0, 0, 1, 1]) == [0, 1], "a hold may end"
