"""Input that is split into requests. tests/control/test_as_qemu.py compares it with QEMU."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import qmp
from protocol.qmp import BadRequest, Request
from protocol.qmp_stream import MAX_NESTING, MAX_REQUEST_SIZE, RequestParser
from tests.support.qmp import inputs

Results = list[Request | BadRequest]
PROBE = b'{"execute":"probe"}'
TOO_LONG = BadRequest("request is longer than 65536 bytes")
TOO_DEEP = BadRequest("JSON nesting depth limit exceeded")
NO_OBJECT = BadRequest("QMP input must be a JSON object")


def parse(pieces: Iterable[bytes]) -> Results:
    parser = RequestParser()
    return [result for piece in pieces for result in parser.feed(piece)]


def bytewise(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


def mistake(position: str, text: str) -> BadRequest:
    return BadRequest(f"{position}: JSON parse error, {text}")


GOOD: list[tuple[bytes, Results]] = [
    (b'{"execute":"a"}', [Request("a")]),
    (b'{"execute":"a"}\r\n', [Request("a")]),
    (b'\n{\n"execute"\r\n:\r"a"\n\n}\n', [Request("a")]),
    (b'{"execute":"a"}{"execute":"b"} {"execute":"c"}', [Request(name) for name in "abc"]),
    (b'{"execute":"a","arguments":{"x":[1,{"y":"]}"}]}}', [Request("a", {"x": [1, {"y": "]}"}]})]),
    (b'{"execute":"a","id":null}', [Request("a", {}, {"id": None})]),
    (
        b'{"id":{"k":[1.5,"\\u00e9",true]},"execute":"a"}',
        [Request("a", {}, {"id": {"k": [1.5, "é", True]}})],
    ),
    (b'{"execute":"\xc3\xa9"}', [Request("é")]),
    (b'{"execute":"\\ud83d\\ude00"}', [Request("\U0001f600")]),
    (b'{"execute":"\xc0\x80\\u0000\x7f"}', [Request("\0\0\x7f")]),
    (b'{"execute":"\xef\xbf\xbf\\ufdd0"}', [Request("\uffff\ufdd0")]),
    (
        b'{"execute":"a","id":123456789012345678901234567890}',
        [Request("a", {}, {"id": 123456789012345678901234567890})],
    ),
    (b'{"execute":"\\"}\\\\"}', [Request('"}\\')]),
    (b"{'execute':'say \"it\\'s\" \\\\'}", [Request('say "it\'s" \\')]),
    (b'{"execute":"it\'s \\\' \\n"}', [Request("it's ' \n")]),
    (b"\x01{'execute':'a'}", [mistake("1:1", "stray '\x01'"), Request("a")]),
    (b'{"lost":["\xff{"execute":"a"}', [mistake("1:10", "stray '\"\ufffd'"), Request("a")]),
    (b'{"a":\nb [ \x01{"execute":"a"}', [mistake("2:1", "invalid keyword 'b'"), Request("a")]),
    (b"[]", [NO_OBJECT]),
    (b'"{"', [NO_OBJECT]),
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
    (b"}", [mistake("1:1", "expecting value")]),
    (b'\n\n {"execute": }', [mistake("3:14", "expecting value")]),
    (b'{"execute"}', [mistake("1:11", "expecting ':'")]),
    (b"{5:1}", [mistake("1:2", "expecting key")]),
    (b'{"a":1 "b":2}', [mistake("1:8", "expected ',' or '}'")]),
    (b'["a" "b"]', [mistake("1:6", "expected ',' or ']'")]),
    (b'{"execute":"a","execute":"a"}', [mistake("1:26", "duplicate key")]),
    (b'{"execute":"a","id":1e400}', [mistake("1:21", "number out of range")]),
    (b'{"execute":"a","id":' + b"1" * 5000 + b"}", [mistake("1:21", "number out of range")]),
    (b'{"execute":"a\xc3\x28"}', [mistake("1:12", "invalid UTF-8 sequence in string")]),
    (b'{"execute":"\\x"}', [mistake("1:12", "invalid escape sequence in string")]),
    (b'{"execute":"\\udc00"}', [mistake("1:12", "\\udc00 is not a valid Unicode character")]),
    (b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1), [TOO_DEEP]),
    (b'{"a":' * 9000 + b"]", [TOO_DEEP]),
    (b'["' + b"x" * 3 * MAX_REQUEST_SIZE + b'"]', [TOO_LONG]),
    (b"x" * 3 * MAX_REQUEST_SIZE + b"\x01", [TOO_LONG, mistake("1:196609", "stray '\x01'")]),
    (b"[" + b"1," * MAX_REQUEST_SIZE + b"1]", [TOO_LONG]),
    (b'"' + b"[" * 3 * MAX_REQUEST_SIZE + b'"', [TOO_LONG]),
    (b"{" + b" \n" * MAX_REQUEST_SIZE + b"}", [BadRequest("QMP input lacks member 'execute'")]),
]


@pytest.mark.parametrize(("data", "expected"), GOOD)
def test_input_whole_and_bytewise(data: bytes, expected: Results) -> None:
    assert parse([data]) == expected
    assert parse(bytewise(data)) == expected


@pytest.mark.parametrize(("data", "expected"), GOOD)
def test_the_next_request_needs_no_newline(data: bytes, expected: Results) -> None:
    assert parse([data, PROBE]) == [*expected, Request("probe")]


@pytest.mark.parametrize("data", inputs.SWALLOWING)
def test_what_is_open_swallows_requests_until_a_reset(data: bytes) -> None:
    assert not any(isinstance(result, Request) for result in parse([data, PROBE]))
    for reset in (b"\xff", b"\x00", b"\x01"):
        assert parse([data, PROBE, reset, PROBE])[-1] == Request("probe")


@pytest.mark.parametrize("rest", [b'{"execute"', b'{"execute":"a', b"nul", b"5", b'"', b"{'a\\"])
def test_nothing_is_made_of_an_incomplete_request(rest: bytes) -> None:
    assert parse([PROBE, rest]) == [Request("probe")]


def test_a_mistake_is_told_before_its_request_ends() -> None:
    assert parse([b'{"execute": \n', b"garbage\n"]) == [mistake("2:1", "invalid keyword 'garbage'")]


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
    assert parse([too_long, PROBE]) == [TOO_LONG, Request("probe")]


@pytest.mark.parametrize(
    ("start", "piece", "end"),
    [
        (b"", b"x", b"\n"),
        (b"", b" ", b""),
        (b"", b"\n", b""),
        (b"", b"1", b" "),
        (b"[", b"[", b"\xff"),
        (b"[", b"[],", b"0]"),
        (b"[", b'{"a":[]},', b"0]"),
        (b'"', b"x", b'"'),
        (b"{'", b"\\'", b"'}"),
        (b"@", b"x", b"\n"),
        (b"[@", b'"', b"\n"),
    ],
)
def test_input_without_end_costs_no_memory(start: bytes, piece: bytes, end: bytes) -> None:
    """Lists and objects of a request that is just not too long take the most."""
    parser, piece = RequestParser(), piece * (1024 // len(piece))
    answers = [*parser.feed(start)]
    tracemalloc.start()
    try:
        for _ in range(MAX_REQUEST_SIZE // 1024 + 8):
            answers += parser.feed(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert len(answers) == (0 if piece.isspace() else 1)
    assert list(parser.feed(end + PROBE))[-1] == Request("probe")


def test_a_piece_takes_a_few_milliseconds_whatever_is_in_it() -> None:
    for piece in (b"[],", b"a ", b'{"a":1},', b"\x01", b"'\\n',", b"}", b"1,"):
        parser = RequestParser()
        list(parser.feed(b"["))
        started = time.process_time()
        list(parser.feed(piece * (1024 // len(piece))))
        assert time.process_time() - started < 0.25


PIECES = st.one_of(
    st.binary(max_size=40),
    st.text(alphabet="{}[]\"'\\:,aeu01 \t\r\n\x00-.", max_size=40).map(str.encode),
    st.sampled_from([data for data, _ in GOOD if len(data) < 200]),
    st.sampled_from([*inputs.SPREAD, *inputs.MISTAKES, *inputs.SWALLOWING, *inputs.REQUESTS]),
    st.sampled_from([b"\n", b"\xff", b"\x01", b"[" * MAX_NESTING, b"x" * MAX_REQUEST_SIZE]),
)


@given(st.lists(PIECES, max_size=8))
def test_any_bytes_in_any_pieces_give_the_same_answers(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    results = parse([whole])
    assert parse(pieces) == results
    assert parse(bytewise(whole) if len(whole) < 2000 else [whole[:7], whole[7:]]) == results


@given(st.lists(PIECES, max_size=8), st.sampled_from([b"\xff", b"\x00", b"\x1f"]))
def test_a_reset_after_any_bytes_starts_afresh(pieces: list[bytes], reset: bytes) -> None:
    assert parse([*pieces, reset, PROBE])[-1] == Request("probe")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 0, 1]))
def test_any_id_is_returned_unchanged(value: qmp.Json, ascii_only: bool, indent: int) -> None:
    """As a client's library writes it: on one line or on many."""
    line = json.dumps({"execute": "a", "id": value}, ensure_ascii=ascii_only, indent=indent)
    (request,) = parse([line.encode()])
    assert json.loads(qmp.encode(qmp.success({}, request.reply_id)))["id"] == value
