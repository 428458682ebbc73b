"""Target: arbitrary bytes from a client of the control socket, against the real QMP server."""

from __future__ import annotations

import json
from typing import Any, Final

import trio
from trio.testing import MockClock

from protocol.qmp_stream import RequestParser
from tests.fuzz.source import Source
from tests.support.control_client import Client, FakeFrontEnd, MemoryListener, attach, request, web1
from tests.support.qmp import inputs
from vhost_balloon.control.server import serve_control
from vhost_balloon.vm.vm import Vm

INVARIANT: Final = (
    "Whatever bytes a client sends in whatever pieces, each request in them gets exactly one reply "
    "in the order sent, each reply is a line of JSON with a result or an error of a known class, "
    "a good request behind them and a reset byte is answered, and other clients are served all the "
    "while."
)
LONGEST: Final = 1e9
"""Seconds on an autojump clock: many requests may each wait a minute for statistics."""

_ERRORS: Final = {"GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound"}
_LAST_ID: Final = "the last one"
_LAST: Final = b"\xff" + json.dumps({"execute": "query-version", "id": _LAST_ID}).encode() + b"\n"

_LONG: Final = {b"~": b"x" * 70_000, b"#": b"9" * 5_000}
"""Placeholders for runs longer than a request or a number may be."""


class _ReadingFrontEnd(FakeFrontEnd):
    """Gives a sample when asked for one."""

    async def fresh_stats(self) -> None:
        await trio.lowlevel.checkpoint()


def _vm(attached: int) -> Vm:
    """A VM; the bits of attached select whether it is attached and whether it gives statistics."""
    vm = web1()
    if attached & 1:
        attach(vm)
    if attached & 2:
        vm.front_end = _ReadingFrontEnd(vm)  # type: ignore[assignment]
    return vm


def _expected(data: bytes) -> int:
    """Count the requests in data; the chunk size must not matter, so feed seven bytes at a time."""
    parser = RequestParser()
    return sum(len(list(parser.feed(data[i : i + 7]))) for i in range(0, len(data), 7))


def _lengthen(data: bytes) -> bytes:
    for short, long in _LONG.items():
        data = data.replace(short, long, 2)
    return data


async def _send(client: Client, data: bytes, piece: int) -> None:
    for start in range(0, len(data), piece):
        await client.stream.send_all(data[start : start + piece])
    await client.stream.send_eof()


async def _converse(source: Source) -> None:
    vm, listener = _vm(source.number()), MemoryListener()
    negotiated, piece = source.rarely(), (source.number() or 4096)
    sent = _lengthen(source.some(1 << 20)) + _LAST
    if not negotiated:  # 0 means the usual case
        sent = request("qmp_capabilities") + sent
    with trio.fail_after(LONGEST):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, listener, vm)
            client, other = listener.connect(), listener.connect()
            await other.negotiate()
            nursery.start_soon(_send, client, sent, piece)
            messages = [_message(line) async for line in _lines(client)]
            assert len(await other.execute("query-vms")) == 1
            nursery.cancel_scope.cancel()
    _check(messages, sent, negotiated=not negotiated)


async def _lines(client: Client) -> Any:
    received = bytearray()
    while part := await client.stream.receive_some(65536):
        received += part
    assert received.endswith(b"\r\n")
    for line in bytes(received).split(b"\r\n")[:-1]:
        yield line


def _message(line: bytes) -> Any:
    assert line.isascii()
    assert b"\n" not in line
    return json.loads(line, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _check(messages: list[Any], sent: bytes, *, negotiated: bool) -> None:
    assert messages[0].keys() == {"QMP"}
    replies = [message for message in messages[1:] if "event" not in message]
    assert len(replies) == _expected(sent), "replies and requests differ in number"
    for reply in replies:
        assert reply.keys() - {"id"} in ({"return"}, {"error"})
        if "error" in reply:
            assert reply["error"].keys() == {"class", "desc"}
            assert reply["error"]["class"] in _ERRORS
    last = replies[-1]
    assert last["id"] == _LAST_ID
    if negotiated:
        assert replies[0] == {"return": {}}
        assert "return" in last


def run(data: bytes) -> None:
    trio.run(_converse, Source(data), clock=MockClock(autojump_threshold=0))


def _seed(attached: int, *requests: bytes, piece: int = 0) -> bytes:
    return bytes((attached, 0, piece)) + b"".join(requests)


_REQUESTS: Final = (
    request("balloon", value=1 << 29, id="web1"),
    request("query-balloon"),
    request("balloon-stats", timeout=100, id="web2"),
    request("balloon-stats"),
    request("balloon-pause", id="web1"),
    request("balloon-resume"),
    request("query-vms"),
    request("query-commands"),
    request("query-qmp-schema"),
    request("qom-get", path="/machine/peripheral/web1", property="guest-stats"),
    request(
        "qom-set",
        path="/machine/peripheral/web1",
        property="guest-stats-polling-interval",
        value=5,
    ),
    request("qom-list", path="peripheral"),
    request("qom-list-get", paths=["/machine", "virtio-backend"]),
    request("query-name"),
    request("human-monitor-command", **{"command-line": "balloon 512", "cpu-index": 0}),
    request("human-monitor-command", **{"command-line": "info balloon"}),
    request("qmp_capabilities", enable=["oob"]),
    b"{'execute': 'query-version', 'id': {'a': [1, 2.5, null, true]}}",
)
SEEDS: Final = (
    *(_seed(attached, *_REQUESTS) for attached in range(4)),
    _seed(1, *_REQUESTS, piece=1),
    *(_seed(1, each) for each in _REQUESTS),
    b"\1\xff\0" + b"".join(_REQUESTS),
)
TOKENS: Final = (
    *_REQUESTS,
    *(b"{ } [ ] \" ' \\ \\u \\ud800 \\' , : null true 1e999 -0 NaN Infinity 1e-400".split(b" ")),
    *(
        b"\n",
        b"\r",
        b"\0",
        b"\x0b",
        b"\x7f",
        b"\xff",
        b"\xc3\xa9",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
    ),
    *(b'"execute":', b'"arguments":', b'"id":', b'"value":', b"9223372036854775808", b"#", b"~"),
    *(b"[" * 101, *inputs.SWALLOWING, *inputs.STRINGS),
)
