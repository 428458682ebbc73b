"""vhost-balloonctl checks the daemon's answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ctl_vms import GONE, vm
from vhost_balloon.ctl import listing
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.model import read_vm


def test_unknown_values_are_none() -> None:
    gone = read_vm([GONE])
    assert (gone.target, gone.actual, gone.resident, gone.socket_path) == (None,) * 4
    assert (gone.memory, gone.paused, gone.freed) == (0, (), 0)


@pytest.mark.parametrize(
    "answer",
    [None, {}, "x", [], [1], [{}], [{"id": "a"}] * 2, [{"id": 5}], [{"id": "a", "actual": "x"}],
     [{"id": "a", "actual": True}], [{"id": "a", "actual": -1}], [{"id": "a", "actual": 1 << 64}],
     [{"id": "a", "actual": 1.5}], [{"id": "a", "attached": 1}], [{"id": "a", "state": None}],
     [{"id": "a", "pause-reasons": "x"}], [{"id": "a", "pause-reasons": [1]}],
     [{"id": "a", "pause-reasons": ["x" * 65]}], [{"id": "a", "pause-reasons": ["x"] * 65}],
     [{"id": "a", "state": "x" * 65}], [{"id": "a", "x": [[[[[[[[[]]]]]]]]]}]],
)  # fmt: skip
def test_an_unexpected_answer_is_an_error(answer: Any) -> None:
    with pytest.raises(CtlError, match="unexpected answer"):
        read_vm(answer)


TEXT = st.sampled_from(["", "done", "\x1b[2J\n", "\ud800", "\u9b5a" * 40, "x" * 200])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda values: st.lists(values) | st.dictionaries(TEXT, values),
    max_leaves=10,
)
MEMBERS = st.sampled_from(
    ["id", "attached", "state", "guest-memory", "target", "pending", "actual", "resident",
     "pause-reasons", "freed-bytes", "socket-path", "queues", "regions", "features", "stats-age",
     "held", "held-for", "huge-pages", "refused-bytes", "ring-errors", "front-end-errors",
     "front-end-pid", "balloon"]
)  # fmt: skip


@given(st.dictionaries(MEMBERS, JSON))
def test_any_answer_is_shown_or_an_error(members: dict[str, Any]) -> None:
    """As printable lines, and as JSON."""
    try:
        found = read_vm([members], "web1")
        lines = [*listing.overview([found], 80), *listing.details(found, None)]
    except CtlError:
        return
    assert all(map(str.isprintable, lines))
    assert json.loads(json.dumps(found.raw)).keys() == {"id", *members}


def test_the_given_name_overrides_the_answers() -> None:
    answers: list[list[dict[str, Any]]] = [[{"id": "bank"}], [{}], [{"id": 5}]]
    for answer in answers:
        found = read_vm(answer, "web1")
        assert (found.id, found.raw["id"]) == ("web1", "web1")


@pytest.mark.parametrize(
    ("errors", "total"),
    [(None, 0), (3, 3), ({}, 0), ({"inflate": {"loop": 2, "oversized": 1}, "stats": {}}, 3)],
)
def test_ring_errors_are_a_number_or_numbers_by_queue_and_reason(errors: Any, total: int) -> None:
    assert f"  ring errors           {total}" in listing.details(vm(ring_errors=errors), None)


@pytest.mark.parametrize(
    "members",
    [{"queues": [5]}, {"queues": [{"index": "x"}]}, {"regions": {}}, {"refused_bytes": {"a": "b"}},
     {"stats_age": "old"}, {"stats_age": -1}, {"stats_age": 1e300}, {"front_end_pid": "x"},
     {"held": 1}, {"held": True, "held_for": "x"},
     {"features": [1]}, {"huge_pages": 5}, {"huge_pages": {"whole": "x"}}, {"ring_errors": "x"},
     {"ring_errors": {"inflate": {"loop": -1}}}, {"ring_errors": [1]}],
)  # fmt: skip
def test_unexpected_details_are_an_error(members: dict[str, Any]) -> None:
    with pytest.raises(CtlError, match="unexpected answer"):
        listing.details(vm(**members), 80)
