"""Target: arbitrary bytes from a client of the metrics address, against the real server."""

from __future__ import annotations

import re
from typing import Final

import trio
from trio.testing import MockClock

from tests.fuzz.source import Source
from tests.support.control_client import MemoryListener
from tests.support.scrapes import GET, serving_in_memory

INVARIANT: Final = (
    "Whatever bytes a client sends in whatever pieces, it gets exactly one well-formed answer, "
    "which is the same however they were split, or none if they hold no complete head; metrics are "
    "in one of two formats; and other clients are served all the while."
)

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_PAGE: Final = "text/html; charset=utf-8"
_WORDS: Final = "text/plain; charset=utf-8"
_REFUSED: Final = {400, 404, 405, 414, 431, 505}

_HEAD: Final = re.compile(
    rb"HTTP/1\.1 (?P<status>\d{3}) [A-Za-z -]+\r\nContent-Type: (?P<type>[^\r\n]+)\r\n"
    rb"Content-Length: (?P<length>\d+)\r\n(?:Allow: GET, HEAD\r\n)?Connection: close\r\n\r\n"
)
_WHOLE: Final = re.compile(rb"[^\r\n].*?\n\r?\n", re.DOTALL)
"""Matches a complete request head, including its empty line."""

_LONG: Final = {b"~": b"x" * 16_000, b"#": b"9" * 5_000}
"""Placeholders for runs longer than a request or a number may be."""


def _lengthen(data: bytes) -> bytes:
    for short, long in _LONG.items():
        data = data.replace(short, long, 2)
    return data


async def _exchange(listener: MemoryListener, data: bytes, piece: int, *, stays: bool) -> bytes:
    """Return the answer. With stays, the client keeps its side open until a time limit ends it."""
    async with listener.connect().stream as stream:
        for start in range(0, len(data), piece):
            try:
                await stream.send_all(data[start : start + piece])
            except trio.BrokenResourceError:
                break  # the server has heard enough
        if not stays:
            await stream.send_eof()
        received = bytearray()
        while part := await stream.receive_some():
            received += part
        return bytes(received)


async def _converse(source: Source) -> None:
    stays, leaves, piece = source.rarely(), source.rarely(), source.number() or 4096
    data = _lengthen(source.some(1 << 20))
    async with serving_in_memory() as listener:
        if leaves:
            async with listener.connect().stream as stream:
                await stream.send_all(data)
        answer = await _exchange(listener, data, piece, stays=stays)
        again = await _exchange(listener, data, len(data) or 1, stays=False)
        _check(answer, data)
        # Some metrics change from one scrape to the next.
        assert (
            answer.partition(b"\r\nContent-Length")[0] == again.partition(b"\r\nContent-Length")[0]
        )
        other = await _exchange(listener, GET, len(GET), stays=True)
        assert _check(other, GET) == 200


def _check(answer: bytes, data: bytes) -> int:
    """Check an answer and return its status, or 0 if there is no answer."""
    if not answer:
        assert not _WHOLE.search(data), "no answer to a complete request"
        return 0
    match = _HEAD.match(answer)
    assert match is not None, "malformed response head"
    status, kind, body = int(match["status"]), match["type"].decode(), answer[match.end() :]
    is_head = re.match(rb"[\r\n]*HEAD ", data) is not None
    assert len(body) == int(match["length"]) or (is_head and not body), (
        "the body does not match Content-Length"
    )
    if status != 200:
        assert (status in _REFUSED, kind) == (True, _WORDS)
    else:
        assert kind in (_TEXT, _OPENMETRICS, _PAGE)
        assert is_head or body.endswith(b"# EOF\n") == (kind == _OPENMETRICS)
    return status


def run(data: bytes) -> None:
    trio.run(_converse, Source(data), clock=MockClock(autojump_threshold=0))


def _seed(*lines: bytes, ending: bytes = b"\r\n", piece: int = 0, stays: int = 0) -> bytes:
    return bytes((stays, 0, piece)) + ending.join([*lines, b"", b""])


_ACCEPT: Final = (
    b"Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    b"application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,"
    b"text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
_LINE: Final = b"GET /metrics HTTP/1.1"
SEEDS: Final = (
    _seed(_LINE, b"Host: localhost:9750", b"User-Agent: Prometheus/3.0.0", _ACCEPT),
    _seed(_LINE, _ACCEPT, ending=b"\n", piece=1),
    _seed(_LINE, b'Accept: application/openmetrics-text;version="1.0.0"', stays=0xFF),
    _seed(b"GET http://user:9750/metrics?x=y HTTP/1.1", b"Accept: text/plain;version=abc"),
    _seed(b"", b"GET https://[::1]:9750 HTTP/1.0"),
    _seed(b"HEAD /metrics HTTP/1.1", b"Expect: 100-continue", piece=7),
    _seed(b"POST / HTTP/1.1", b"Content-Length: 5") + b"hello",
    _seed(b"OPTIONS * HTTP/1.1"),
    _seed(b"CONNECT localhost:9750 HTTP/1.1"),
    _seed(b"PRI * HTTP/2.0"),
    _seed(_LINE, b"", _LINE),
)
TOKENS: Final = (
    *(b"GET HEAD POST /metrics / * HTTP/1.1 HTTP/1.0 http:// https:// [::1] :80 ? @".split()),
    *(b"\r\n", b"\n", b"\r", b"\n\n", b"\r\n\r\n", b" ", b"\t", b"\0", b"\x7f", b"\xff", b"\xb2"),
    *(b"Accept:", b"Host:", b"x: y\r\n", b"application/openmetrics-text", b"text/plain", b"*/*"),
    *(b"application/*", b";version=1.0.0", b";version=abc", b"0.0.4", b"1.0.0-rc1", b"-1", b";q=0"),
    *(b";q=0.5", b";q=1e9", b"nan", b",", b";", b"=", b'"', b"\\", b"~", b"#", b"." * 50),
)
