"""Messages of a QMP server: built, and parsed strictly."""

from __future__ import annotations

import json

import pytest

from protocol import qmp


def test_greeting_is_one_ascii_line_with_version() -> None:
    line = qmp.encode(qmp.greeting(qmp.version(1, 2, 3, "balloon \u00e9")))
    assert line.endswith(b"\r\n")
    assert line.isascii()
    version = {"qemu": {"major": 1, "minor": 2, "micro": 3}, "package": "balloon \u00e9"}
    assert json.loads(line) == {"QMP": {"version": version, "capabilities": []}}


def test_replies_carry_an_id_only_if_there_was_one() -> None:
    assert qmp.success({}, {}) == {"return": {}}
    assert qmp.success(5, {"id": None}) == {"return": 5, "id": None}
    assert qmp.error("no", "GenericError", {"id": [1]}) == {
        "error": {"class": "GenericError", "desc": "no"},
        "id": [1],
    }


def test_event_splits_its_timestamp() -> None:
    assert qmp.event("E", {"a": 1}, 1258551470.802384) == {
        "event": "E",
        "data": {"a": 1},
        "timestamp": {"seconds": 1258551470, "microseconds": 802384},
    }


def test_infinity_is_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        qmp.encode({"value": float("inf")})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "nul", "{'a':1}", '{"a":1,"a":1}', "NaN", "-Infinity", "1e400", "1" * 5000),
        *('"\\udc00"', '{"a":["\\ud800x"]}', "\ufeff1"),
    ],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        qmp.load(text)


def test_replies_are_parsed() -> None:
    text = '{"return": {"a": [1, 1.5, null, true, "\\ud83d\\ude00"]}}'
    assert qmp.load(text) == {"return": {"a": [1, 1.5, None, True, "\U0001f600"]}}
