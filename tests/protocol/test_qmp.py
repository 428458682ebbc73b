"""Messages that are sent, and input that is split into requests."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import qmp
from protocol.qmp import BadRequest, Request
from protocol.qmp_stream import MAX_NESTING, MAX_REQUEST_SIZE, RequestParser

Results = list[Request | BadRequest]
PROBE = b'{"execute":"probe"}'


def parse(pieces: Iterable[bytes], *, close: bool = True) -> Results:
    parser = RequestParser()
    results = [result for piece in pieces for result in parser.feed(piece)]
    return results + list(parser.close()) if close else results


def bytewise(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


def json_error(text: str) -> BadRequest:
    return BadRequest(f"JSON parse error, {text}")


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


GOOD: list[tuple[bytes, Results]] = [
    (b'{"execute":"a"}', [Request("a")]),
    (b'{"execute":"a"}\r\n', [Request("a")]),
    (b' \t{ "execute" : "a" }\n\n\r\n', [Request("a")]),
    (b'{"execute":"a"}{"execute":"b"} {"execute":"c"}', [Request(name) for name in "abc"]),
    (b'{"execute":"a","arguments":{"x":[1,{"y":"]}"}]}}', [Request("a", {"x": [1, {"y": "]}"}]})]),
    (b'{"execute":"a","id":null}', [Request("a", {}, {"id": None})]),
    (
        b'{"id":{"k":[1.5,"\\u00e9",true]},"execute":"a"}',
        [Request("a", {}, {"id": {"k": [1.5, "é", True]}})],
    ),
    (b'{"execute":"\xc3\xa9"}', [Request("é")]),
    (b'{"execute":"\\ud83d\\ude00"}', [Request("\U0001f600")]),
    (
        b'{"execute":"a","id":123456789012345678901234567890}',
        [Request("a", {}, {"id": 123456789012345678901234567890})],
    ),
    (b'{"execute":"\\"}\\\\"}', [Request('"}\\')]),
    (b"{'execute':'a'}", [Request("a")]),
    (b"{'execute':'say \"it\\'s\" \\\\'}", [Request('say "it\'s" \\')]),
    (b'{"execute":"it\'s \\\' \\n"}', [Request("it's ' \n")]),
    (b"\x01{'execute':'a'}", [json_error("stray byte 0x01"), Request("a")]),
    (b'{"lost":["\xff{"execute":"a"}', [json_error("stray byte 0xFF"), Request("a")]),
]

BAD: list[tuple[bytes, Results]] = [
    (b"nul", [json_error("expecting value (column 1)")]),
    (b"}", [json_error("expecting value (column 1)")]),
    (b'{"execute": }', [json_error("expecting value (column 13)")]),
    (b'{"execute"', [json_error("expecting ':' delimiter (column 11)")]),
    (b'{"execute":"a', [json_error("unterminated string (column 12)")]),
    (b"{'execute':'a", [json_error("unterminated string")]),
    (b"{'execute':'a\\", [json_error("unterminated string")]),
    (b'{"execute":"a","execute":"a"}', [json_error("duplicate key")]),
    (b'{"execute":"a","id":NaN}', [json_error("NaN is not a JSON number")]),
    (b'{"execute":"a","id":-Infinity}', [json_error("-Infinity is not a JSON number")]),
    (b'{"execute":"a","id":1e400}', [json_error("number out of range")]),
    (b'{"execute":"a","id":' + b"1" * 5000 + b"}", [json_error("number out of range")]),
    (b'{"execute":"a\xc3\x28"}', [json_error("invalid UTF-8")]),
    (b'{"execute":"a\xffb"}', [json_error("stray byte 0xFF")]),
    (b'{"execute":"a\x00b"}', [json_error("stray byte 0x00")]),
    (
        b'\x01\x01{"execute"',
        [json_error("stray byte 0x01"), json_error("expecting ':' delimiter (column 11)")],
    ),
    (b'{"execute":"\\udc00"}', [json_error("half of a surrogate pair is not a character")]),
    (b"[]", [BadRequest("QMP input must be a JSON object")]),
    (b"5", [BadRequest("QMP input must be a JSON object")]),
    (b'"{"', [BadRequest("QMP input must be a JSON object")]),
    (b"null", [BadRequest("QMP input must be a JSON object")]),
    (b"{}", [BadRequest("QMP input lacks member 'execute'")]),
    (b'{"id":3}', [BadRequest("QMP input lacks member 'execute'", {"id": 3})]),
    (b'{"execute":1}', [BadRequest("QMP input member 'execute' must be a string")]),
    (
        b'{"execute":"a","arguments":[]}',
        [BadRequest("QMP input member 'arguments' must be an object")],
    ),
    (
        b'{"execute":"a","x":1,"id":7}',
        [BadRequest("QMP input member 'x' is unexpected", {"id": 7})],
    ),
    (
        b'{"exec-oob":"a","id":1}',
        [BadRequest("QMP input member 'exec-oob' is unexpected", {"id": 1})],
    ),
    (b"[" * (MAX_NESTING + 1), [BadRequest("JSON nesting depth limit exceeded")]),
    (b"[" * 60000, [BadRequest("JSON nesting depth limit exceeded")]),
    (b"{" + b" " * MAX_REQUEST_SIZE, [BadRequest("request is longer than 65536 bytes")]),
    (b"x" * (MAX_REQUEST_SIZE + 1), [BadRequest("request is longer than 65536 bytes")]),
]


@pytest.mark.parametrize(("data", "expected"), GOOD + BAD)
def test_input_whole_and_bytewise(data: bytes, expected: Results) -> None:
    assert parse([data]) == expected
    assert parse(bytewise(data)) == expected


@pytest.mark.parametrize(("data", "expected"), GOOD + BAD)
def test_the_next_line_is_never_lost(data: bytes, expected: Results) -> None:
    assert parse([data + b"\n" + PROBE], close=False) == [*expected, Request("probe")]


@pytest.mark.parametrize(("data", "expected"), GOOD)
def test_a_request_needs_no_newline(data: bytes, expected: Results) -> None:
    assert parse([data, PROBE], close=False) == [*expected, Request("probe")]


def test_the_deepest_nesting_allowed() -> None:
    inner = MAX_NESTING - 1
    data = b'{"execute":"a","id":' + b"[" * inner + b"]" * inner + b"}"
    (request,) = parse([data])
    assert isinstance(request, Request)
    assert json.loads(qmp.encode(qmp.success({}, request.reply_id)))["id"]  # and can be sent back


def test_the_longest_request_allowed() -> None:
    frame = b'{"execute":"a","id":"%s"}'
    fits = frame % (b"x" * (MAX_REQUEST_SIZE - len(frame) + 2))
    assert len(fits) == MAX_REQUEST_SIZE
    assert parse([fits])[0].reply_id
    too_long = frame % (b"x" * (MAX_REQUEST_SIZE - len(frame) + 3))
    assert parse([too_long]) == [BadRequest("request is longer than 65536 bytes")]


@pytest.mark.parametrize("start", [b"x", b" ", b"[", b'"', b"{'"])
def test_a_line_of_10_mb_costs_no_memory(start: bytes) -> None:
    parser, piece = RequestParser(), start[-1:] * 16384
    tracemalloc.start()
    try:
        answers = [*parser.feed(start)]
        for _ in range(640):
            answers += parser.feed(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert len(answers) == (start != b" ")
    assert list(parser.feed(b"\n" + PROBE)) == [Request("probe")]


PIECES = st.one_of(
    st.binary(max_size=40),
    st.text(alphabet="{}[]\"'\\:,aeu01 \t\r\n\x00-.", max_size=40).map(str.encode),
    st.sampled_from([data for data, _ in GOOD + BAD if len(data) < 200]),
    st.sampled_from([b"\n", b"\xff", b"\x01", b"[" * MAX_NESTING, b" " * MAX_REQUEST_SIZE]),
)


@given(st.lists(PIECES, max_size=8))
def test_any_bytes_in_any_pieces_give_the_same_answers(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    results = parse([whole])
    assert parse(pieces) == results
    assert parse(bytewise(whole) if len(whole) < 2000 else [whole[:7], whole[7:]]) == results


@given(st.lists(PIECES, max_size=8))
def test_a_newline_after_any_bytes_starts_afresh(pieces: list[bytes]) -> None:
    assert parse([*pieces, b"\n", PROBE], close=False)[-1] == Request("probe")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES, st.booleans())
def test_any_id_is_returned_unchanged(value: qmp.Json, ascii_only: bool) -> None:
    line = json.dumps({"execute": "a", "id": value}, ensure_ascii=ascii_only).encode()
    (request,) = parse([line])
    assert json.loads(qmp.encode(qmp.success({}, request.reply_id)))["id"] == value
