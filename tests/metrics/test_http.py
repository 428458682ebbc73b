"""Requests to the metrics address: how they can be written, and that each is answered at once."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.support.scrapes import read_all, read_answer, serving_in_memory
from vhost_balloon.metrics.http import MAX_HEAD, BadRequest, Request, RequestReader

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def read(*pieces: bytes) -> Request | int | None:
    """The request, the status for a bad one, or None while it is incomplete."""
    reader = RequestReader()
    for piece in pieces:
        try:
            request = reader.feed(piece)
        except BadRequest as error:
            return int(error.status)
        if request is not None:
            return request
    return None


METRICS = Request("GET", "/metrics")


@pytest.mark.parametrize(
    ("head", "request_"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Request("GET", "/")),
        (b"HEAD /metrics HTTP/1.0\r\n\r\n", Request("HEAD", "/metrics")),
        (b"GET /metrics?name=x HTTP/1.1\r\nHost: a:1\r\n\r\n", METRICS),
        (
            b"GET / HTTP/1.1\r\naCCept:  a , b \r\nAccept:c\r\nAccept:\r\nx:\r\n\r\n",
            Request("GET", "/", "a , b,c,"),
        ),
        (b"GET /\xff HTTP/1.1\r\nx: \xff\r\n\r\n", Request("GET", "/\xff")),
        (b"GET / HTTP/1.2\r\n\r\n", Request("GET", "/")),
        (b"GET / HTTP/1.9\r\n\r\n", Request("GET", "/")),
        # Lines
        (b"GET /metrics HTTP/1.1\n\n", METRICS),
        (b"GET /metrics HTTP/1.1\nHost: a\n\n", METRICS),
        (b"GET /metrics HTTP/1.1\r\nHost: a\n\r\n", METRICS),
        (b"GET /metrics HTTP/1.1\nHost: a\r\n\n", METRICS),
        (b"\r\nGET /metrics HTTP/1.1\r\n\r\n", METRICS),
        (b"\nGET /metrics HTTP/1.1\n\n", METRICS),
        (b"\r\n\n\r\n\nGET /metrics HTTP/1.1\r\n\r\n", METRICS),
        (b"GET /metrics HTTP/1.1\n\nGET /other HTTP/1.1\n\n", METRICS),
        # Absolute form
        (b"GET http://host/metrics HTTP/1.1\r\n\r\n", METRICS),
        (b"GET http://host:9750/metrics?a=b/c?d HTTP/1.1\r\nHost: x\r\n\r\n", METRICS),
        (b"GET https://host:/metrics HTTP/1.1\r\n\r\n", METRICS),
        (b"GET HTTP://HOST/metrics HTTP/1.1\r\n\r\n", METRICS),
        (b"GET http://[::1]:9750/metrics HTTP/1.1\r\n\r\n", METRICS),
        (b"GET http://[fe80::1%25lo]/metrics HTTP/1.0\r\n\r\n", METRICS),
        (b"HEAD http://host HTTP/1.1\r\n\r\n", Request("HEAD", "/")),
        (b"GET http://host:80?x HTTP/1.1\r\n\r\n", Request("GET", "/")),
        (
            b"GET http://host/http://other/metrics HTTP/1.1\n\n",
            Request("GET", "/http://other/metrics"),
        ),
        # Other methods
        (b"OPTIONS * HTTP/1.1\r\n\r\n", Request("OPTIONS", "*")),
        (b"CONNECT host:9750 HTTP/1.1\r\n\r\n", Request("CONNECT", "host:9750")),
        (b"get / HTTP/1.1\r\n\r\n", Request("get", "/")),
    ],
)
def test_request(head: bytes, request_: Request) -> None:
    assert read(head) == request_


@pytest.mark.parametrize(
    ("head", "status"),
    [
        *(
            (line + b"\r\n", 400)
            for line in (
                *(b"GET", b"GET /", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b" GET / HTTP/1.1"),
                *(
                    b"GET / HTTP/1.1 ",
                    b"GET\t/ HTTP/1.1",
                    b"GET / HTTP/1.1 x",
                    b"GET /a b HTTP/1.1",
                ),
                *(b"GET / http/1.1", b"GET / HTTP/1", b"GET / HTTP/1.10", b"GET / HTTP/x.1"),
                *(
                    b"GET / HTTP/\xb2.1",
                    b"GET / HTTP/1.1\r",
                    b"\rGET / HTTP/1.1",
                    b"GET\r/ HTTP/1.1",
                ),
                *(b"GET /\0 HTTP/1.1", b"GET /\x7f HTTP/1.1", b"\0", b"\r", b"{GET} / HTTP/1.1"),
                *(b"G\xcbT / HTTP/1.1", b"\x16\x03\x01\x02\x00\x01", b"\x80\x2e\x01", b"hello"),
                *(b"GET x HTTP/1.1", b"GET * HTTP/1.1", b"GET host:80 HTTP/1.1"),
                *(b"GET ftp://host/ HTTP/1.1", b"GET http:/metrics HTTP/1.1"),
                *(b"GET http:///metrics HTTP/1.1", b"GET http://:80/metrics HTTP/1.1"),
                *(b"GET http://u:p@host/ HTTP/1.1", b"GET http://host:x/ HTTP/1.1"),
                *(b"GET http://[::1/ HTTP/1.1", b"GET http://::1/ HTTP/1.1"),
                *(b"GET http://host/metrics#x HTTP/1.1", b"GET metrics HTTP/1.1"),
            )
        ),
        (b"GET / HTTP/2.0\r\n", 505),
        (b"PRI * HTTP/2.0\r\n", 505),
        (b"GET / HTTP/0.9\n", 505),
        (b"GET x HTTP/3.0\n", 505),
        # Fields
        *(
            (b"GET / HTTP/1.1\r\n" + line + b"\r\n", 400)
            for line in (
                *(
                    b"x",
                    b":",
                    b": x",
                    b"x : y",
                    b" x: y",
                    b"\tx: y",
                    b"x y: z",
                    b"x\0: y",
                    b"(x): y",
                ),
                *(b"x: \0", b"x: y\rz", b"x: y\r", b"x: \x7f", b"x: \x1b[m", b"\xff: x", b"\r"),
                *(b"x: y\r\n folded", b"x: y\r\n\tfolded", b"Accept: */*\r\n ", b"x: y\n \n"),
                *(b"Host: a\r\nHost: a", b"Host: a\r\nx: y\r\nhOST: b"),
            )
        ),
        # Lengths
        (b"x" * MAX_HEAD, 431),
        (b"GET / HTTP/1.1\r\n" + b"x" * MAX_HEAD, 431),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * MAX_HEAD, 431),
        (b"\r\n" * MAX_HEAD, 431),
        (b"GET /" + b"x" * MAX_HEAD, 414),
        (b"\nGET /" + b"x" * MAX_HEAD + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_a_bad_request(head: bytes, status: int) -> None:
    """It is recognised without an empty line."""
    assert read(head) == status


@pytest.mark.parametrize("size", [MAX_HEAD - 1, MAX_HEAD, MAX_HEAD + 1])
def test_longest_head(size: int) -> None:
    head = b"GET / HTTP/1.1\r\nx: "
    head += b"x" * (size - len(head) - 4) + b"\r\n\r\n"
    assert read(head) == read(*(head[i : i + 1] for i in range(size)))
    assert read(head) == (Request("GET", "/") if size <= MAX_HEAD else 431)


PIECES = st.sampled_from(
    [
        *(b"GET", b"HEAD", b"POST", b" ", b"/metrics", b"http://host/", b"*", b"HTTP/1.1", b"?"),
        *(b"\r\n", b"\n", b"\r", b"\n\n", b"Accept", b"Host", b":", b"x: y", b"\t", b"\0", b"\xff"),
        *(b"GET / HTTP/1.1\r\n", b"Host: x\n", b"x" * 20_000),
    ]
)
BYTES = st.one_of(st.binary(), st.lists(PIECES, max_size=20).map(b"".join))


def split(data: bytes, r: random.Random) -> list[bytes]:
    cuts = sorted(r.choices(range(len(data) + 1), k=5))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(BYTES, st.randoms(use_true_random=False))
def test_how_bytes_are_split_makes_no_difference(data: bytes, r: random.Random) -> None:
    found = read(data)
    assert found is None or isinstance(found, Request) or found in (400, 414, 431, 505)
    assert read(*split(data, r)) == found
    assert read(*(data[i : i + 1] for i in range(len(data)))) == found


@given(BYTES, BYTES)
def test_what_follows_a_request_makes_no_difference(data: bytes, more: bytes) -> None:
    found = read(data)
    if found is not None:
        assert read(data + more) == found


LINES = st.lists(st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=20))


@given(LINES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_how_lines_end_makes_no_difference(lines: list[str], empty: int, r: random.Random) -> None:
    given_lines = ["GET /metrics HTTP/1.1", *lines, ""]

    def ending(*ends: str) -> bytes:
        text = "".join(r.choice(ends) for _ in range(empty))
        return (text + "".join(line + r.choice(ends) for line in given_lines)).encode("latin-1")

    found = read(ending("\r\n"))
    assert found is not None
    assert read(ending("\n")) == read(ending("\r\n", "\n")) == found
    if not re.search("[^\t -~\xa0-\xff]", "".join(lines)):
        assert (found == 400) == any(
            not re.match("[!#$%&'*+.^_`|~0-9A-Za-z-]+:", line)
            for line in lines[: (*lines, "").index("")]
        )


class Searched(bytearray):
    """Counts the bytes that are searched."""

    bytes = 0

    def find(self, *arguments: Any) -> int:
        self.bytes += len(self) - arguments[1]
        return super().find(*arguments)


def test_a_head_that_comes_byte_by_byte_is_searched_once() -> None:
    reader, head = RequestReader(), b"GET / HTTP/1.1\r\nx: " + b"x" * 1000
    reader._data = Searched()
    for byte in head:
        assert reader.feed(bytes([byte])) is None
    assert reader._data.bytes <= 2 * len(head)


# Answers


async def answer_at_once(*pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer, for which nothing waits; needs an autojump clock."""
    async with serving_in_memory() as listener:
        stream = listener.connect().stream
        started = trio.current_time()
        async with stream:
            for piece in pieces:
                await stream.send_all(piece)
            answer = read_answer(await read_all(stream))
            assert trio.current_time() == started
        _, headers, body = answer
        assert headers["Connection"] == "close"
        assert len(body) in (0, int(headers["Content-Length"]))
        async with listener.connect().stream as other:
            await other.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert read_answer(await read_all(other))[0] == 200
        return answer


GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET http://host/metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\n\n", 200),
        (b"\r\n\r\nGET /metrics HTTP/1.0\r\n\r\n", 200),
        (GET + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n", 200),
        (GET + b"Content-Length: 5\r\n\r\nhello", 200),
        (GET + b"Content-Length: -x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n", 200),
        (GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", 200),
        (3 * (GET + b"\r\n"), 200),
        (GET + b"\r\n" + bytes(20_000), 200),
        (b"GET /other HTTP/1.1\n\n", 404),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 405),
        (b"CONNECT host:80 HTTP/1.1\r\n\r\n", 405),
        (b"TRACE / HTTP/1.1\r\n\r\n", 405),
        (b"get /metrics HTTP/1.1\r\n\r\n", 405),
        (b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 405),
        (b"GET /metrics\r\n", 400),
        (GET + b"Host: y\r\n\r\n", 400),
        (GET + b" folded\r\n\r\n", 400),
        (GET + b"x: \0\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)
async def test_each_is_answered_at_once(
    autojump_clock: MockClock, request_: bytes, status: int
) -> None:
    assert (await answer_at_once(request_))[0] == status
    assert (await answer_at_once(*(request_[i : i + 1] for i in range(len(request_)))))[0] == status


@pytest.mark.parametrize(
    "head", [b"HEAD /metrics HTTP/1.1\n\n", b"HEAD * HTTP/1.1\n", b"HEAD / HTTP/1.1\nx\n"]
)
async def test_head_never_has_a_body(autojump_clock: MockClock, head: bytes) -> None:
    assert (await answer_at_once(head))[2] == b""


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (b"Accept: application/openmetrics-text\r\n", OPENMETRICS),
        (
            b"accept: text/plain;q=0.1\r\nx: y\r\nACCEPT: application/openmetrics-text\r\n",
            OPENMETRICS,
        ),
        (b"Accept: application/openmetrics-text; version=1.0.0; escaping=values\r\n", OPENMETRICS),
        (b"Accept: application/openmetrics-text; version=0.0.1\r\n", OPENMETRICS),
        (b"", TEXT),
        (b"Accept:\r\n", TEXT),
        (b"Accept: application/openmetrics-text; version=abc\r\n", TEXT),
        (b"Accept: application/openmetrics-text; version=1.0.0-rc1\r\n", TEXT),
        (b'Accept: text/plain;version="0.0.4"\r\n', TEXT),
        (b"Accept: text/plain; version=1.0.0; escaping=allow-utf-8\r\n", TEXT),
        (b"Accept: text/plain; version=abc\r\n", TEXT),
        (b"Accept: image/png\r\n", TEXT),
        (b"Accept: \xff\xfe=;,\r\n", TEXT),
        (b"Accept: " + b"," * 16_000 + b"\r\n", TEXT),
        (b"Accept: application/openmetrics-text;version=" + b"1." * 7000 + b"\r\n", TEXT),
    ],
)
async def test_any_accept_header_gets_one_of_two_formats(
    autojump_clock: MockClock, accept: bytes, content_type: str
) -> None:
    status, headers, body = await answer_at_once(b"GET /metrics HTTP/1.1\r\n" + accept + b"\r\n")
    assert (status, headers["Content-Type"]) == (200, content_type)
    assert body.endswith(b"# EOF\n") == (content_type == OPENMETRICS)
