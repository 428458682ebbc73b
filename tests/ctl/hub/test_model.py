"""vhost-balloonctl checks the hub's answers about its policy."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes.hub import document
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.hub import view
from vhost_balloon.ctl.hub.model import find, read_policy
from vhost_balloon.ctl.text import width


@pytest.mark.parametrize(
    "answer",
    [None, [], "x", {}, {"mode": 5}, {"mode": "x" * 65}, {"mode": "on", "host": []},
     {"mode": "on", "host": {"available": -1}}, {"mode": "on", "host": {"k": "x"}},
     {"mode": "on", "host": {"some": -1}}, {"mode": "on", "host": {"short": 1}},
     {"mode": "on", "host-readable": 1}, {"mode": "on", "explanation": 5},
     {"mode": "on", "vms": {}},
     {"mode": "on", "problems": "x"}, {"mode": "on", "problems": [5]},
     {"mode": "on", "problems": ["x"] * 10_001}, {"mode": "on", "x": [[[[[[[[[]]]]]]]]]}],
)  # fmt: skip
def test_an_unexpected_answer_is_an_error(answer: Any) -> None:
    with pytest.raises(CtlError, match="unexpected answer"):
        read_policy(answer)


@pytest.mark.parametrize("row", [None, 5, [], {}, {"id": 5}, {"id": ""}])
def test_a_row_without_a_name_costs_no_other_row(row: Any) -> None:
    answer = document()
    plain = read_policy(answer)
    odd = read_policy(answer | {"vms": [row, *answer["vms"]]})
    assert odd.vms[1:] == plain.vms
    lines = view.overview(odd, None)
    assert lines[2].split() == ["-", "unknown", *["-"] * 8]
    assert [line.split() for line in lines[3:]] == [
        line.split() for line in view.overview(plain, None)[2:]
    ]
    assert find(odd, ["", "-"]) is None


@pytest.mark.parametrize(
    ("member", "value"),
    [("reason", 5), ("reason", "x" * 65), ("detail", 5), ("explanation", None), ("size", -1),
     ("target", 1 << 64), ("order", "x"), ("actual", True), ("demand", 1.5), ("spare", []),
     ("age", "x"), ("age", -1), ("age", 1e300), ("held-for", (1 << 63) - 1), ("distress", 1),
     ("weight", "x"), ("reversals", -1), ("decisions", []), ("decisions", {"relief": "x"})],
)  # fmt: skip
def test_a_member_that_is_wrong_is_as_if_it_were_absent(member: str, value: Any) -> None:
    answer = document()
    *others, row = answer["vms"]
    wrong = read_policy(answer | {"vms": [*others, row | {member: value}]})
    row = {name: value for name, value in row.items() if name != member}
    absent = read_policy(answer | {"vms": [*others, row]})
    assert wrong.vms == (*absent.vms[:-1], absent.vms[-1]._replace(raw=wrong.vms[-1].raw))
    assert view.explained(wrong, wrong.vms[-1], 80) == view.explained(absent, absent.vms[-1], 80)


def test_a_reason_that_is_missing_is_unknown() -> None:
    [vm] = read_policy({"mode": "on", "vms": [{"id": "web1", "detail": "odd"}]}).vms
    assert vm.reason == "unknown: odd"


def test_a_text_that_is_too_long_is_cut() -> None:
    [vm] = read_policy({"mode": "on", "vms": [{"id": "web1", "explanation": "x" * 4001}]}).vms
    assert vm.explanation == "x" * 4000 + "~"


TEXT = st.sampled_from(["", "on", "off", "\x1b[2J\n", "\ud800", "\u9b5a" * 40, "x" * 200])
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VM_MEMBERS = st.sampled_from([*document()["vms"][2], "held-for", "other"])
VM = st.dictionaries(VM_MEMBERS, LEAF | st.dictionaries(TEXT, LEAF)) | LEAF
HOST_MEMBERS = st.sampled_from([*document()["host"], "other"])


@given(
    st.fixed_dictionaries(
        {"mode": TEXT},
        optional={
            "configured-mode": LEAF, "host-readable": LEAF, "problems": LEAF | st.lists(LEAF),
            "explanation": LEAF, "host": LEAF | st.dictionaries(HOST_MEMBERS, LEAF),
            "vms": LEAF | st.lists(VM, max_size=3),
        },
    )
)  # fmt: skip
def test_any_answer_is_shown_or_an_error(answer: dict[str, Any]) -> None:
    try:
        policy = read_policy(answer)
        lines = view.overview(policy, 80)
        for one in policy.vms:
            lines += view.explained(policy, one, None)
    except CtlError:
        return
    assert all(map(str.isprintable, lines))
    assert json.loads(json.dumps(policy.raw)) == answer


@given(st.lists(VM, max_size=3), st.integers(1, 200))
def test_any_row_is_shown_and_no_error(rows: list[Any], columns: int) -> None:
    policy = read_policy(document() | {"vms": rows})
    assert len(policy.vms) == len(rows)
    lines = view.vms_table(policy.vms, columns)
    assert len(lines) == 1 + len(rows)
    for one in policy.vms:
        lines += view.explained(policy, one, columns)
    assert all(line.isprintable() and width(line) <= columns for line in lines)
