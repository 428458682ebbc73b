"""The metrics address: HTTP, slow and rude clients, and the daemon's options."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.rig.daemon import Daemon
from tests.support.helpers import receive
from tests.support.scrapes import GET, ask, connect, read_all, serving
from vhost_balloon.config import config
from vhost_balloon.errors import OperatorError
from vhost_balloon.metrics import server as metrics_server
from vhost_balloon.metrics.http import MAX_HEAD
from vhost_balloon.metrics.server import MAX_CLIENTS

VM = ["--socket-path=/run/web1.sock"]


# Answers


async def test_metrics() -> None:
    async with serving() as server:
        status, headers, body = await ask(server, GET)
        assert status == 200
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert headers["Connection"] == "close"
        assert int(headers["Content-Length"]) == len(body)
        assert b'vhost_balloon_connected{vm="web2"} 0\n' in body


async def test_openmetrics_for_a_client_that_accepts_it() -> None:
    request = b"GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text\r\n\r\n"
    async with serving() as server:
        _, headers, body = await ask(server, request)
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")


async def test_landing_page_leads_to_the_metrics() -> None:
    async with serving() as server:
        status, headers, body = await ask(server, b"GET / HTTP/1.0\r\n\r\n")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert b'<a href="/metrics">' in body


async def test_head_has_no_body() -> None:
    async with serving() as server:
        status, headers, body = await ask(server, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"DELETE / HTTP/1.1\r\n\r\n", 405),
        (b"hello\r\n\r\n", 400),
        (b"hello\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"x" * MAX_HEAD + b"\r\n\r\n", 431),
        (b"x" * 4 * MAX_HEAD, 431),
    ],
)
async def test_requests_that_are_refused(request_: bytes, status: int) -> None:
    async with serving() as server:
        assert (await ask(server, request_))[0] == status
        assert (await ask(server, GET))[0] == 200


async def test_a_request_may_come_byte_by_byte() -> None:
    async with serving() as server, await connect(server) as client:
        for byte in GET:
            await client.send_all(bytes([byte]))
        assert (await read_all(client)).startswith(b"HTTP/1.1 200 OK\r\n")


# Slow and rude clients


async def test_a_clients_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "PATIENCE", 0.1)
    async with serving() as server:
        for beginning in (b"", b"GET / HT", GET[:-1]):
            async with await connect(server) as client:
                await client.send_all(beginning)
                assert await read_all(client) == b""


async def test_the_oldest_of_a_crowd_makes_room_for_a_scrape() -> None:
    async with serving() as server, AsyncExitStack() as crowd:
        idle = [
            await crowd.enter_async_context(await connect(server)) for _ in range(MAX_CLIENTS + 5)
        ]
        assert (await ask(server, GET))[0] == 200
        assert await read_all(idle[0]) == b""
        await idle[-1].send_all(GET)
        assert (await read_all(idle[-1])).startswith(b"HTTP/1.1 200")


async def test_clients_that_break_off_affect_no_other() -> None:
    reset = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST
    async with serving() as server:
        for beginning in (b"", b"GET ", GET, b"POST / HTTP/1.1\r\n\r\n" + bytes(1 << 20)):
            client = await connect(server)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            with contextlib.suppress(trio.BrokenResourceError):
                await client.send_all(beginning)
            await client.aclose()
            async with await connect(server) as half:
                with contextlib.suppress(trio.BrokenResourceError):
                    await half.send_all(beginning)
                    await half.send_eof()
                    await read_all(half)
            assert (await ask(server, GET))[0] == 200


# Options


@pytest.mark.parametrize(
    ("text", "host", "port_"),
    [
        (":9100", "127.0.0.1", 9100),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
        ("[::1]:9100", "::1", 9100),
        ("[::]:9100", "::", 9100),
        ("*:9100", "*", 9100),
        ("[fe80::1%eth0]:9100", "fe80::1%eth0", 9100),
        ("host-1.example.org:80", "host-1.example.org", 80),
    ],
)
def test_address(text: str, host: str, port_: int) -> None:
    options = config.parse([*VM, f"--metrics-address={text}"]).metrics
    assert options is not None
    assert (options.host, options.port) == (host, port_)


def test_no_metrics_unless_asked_for() -> None:
    assert config.parse(VM).metrics is None


@pytest.mark.parametrize(
    "options",
    [
        *(["--metrics-address=" + text] for text in ("", "9100", "::1:9100", "[]:9100", "a:b:1")),
        *(["--metrics-address=" + text] for text in ("host:", "host:65536", "host:-1", "host:9x")),
        *(
            ["--metrics-address=" + text]
            for text in ("http://host:9100", "a b:1", "host:1/metrics")
        ),
        ["--metrics-certificate=x"],
        ["--metrics-key=x", "--metrics-address=:0"],
        ["--metrics-client-ca=x", "--metrics-address=:0"],
    ],
)
def test_invalid_options(options: list[str]) -> None:
    with pytest.raises(OperatorError, match="metrics") as error:
        config.parse([*VM, *options])
    assert "\n" not in str(error.value)


# The daemon


def test_a_port_in_use_is_the_operators_mistake(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "vhost_balloon"),
                f"--socket-path={tmp_path}/web1.sock",
                f"--control-socket={tmp_path}/control",
                f"--metrics-address={address}",
            ],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.returncode == 2
    assert done.stderr == f"vhost-balloon: cannot listen on {address}: Address already in use\n"
    assert list(tmp_path.iterdir()) == []


def test_the_daemon_ends_in_time_whatever_clients_do() -> None:
    with Daemon("--metrics-address=:0", name="web1") as daemon:
        match = daemon.wait_logged(r"metrics on http://(127\.0\.0\.1):(\d+)/metrics\n")
        clients = [socket.create_connection((match[1], int(match[2]))) for _ in range(20)]
        for client in clients[::2]:
            client.send(GET)  # without reading the answer
        for client in clients[1::4]:
            client.send(GET[:-1])
        with socket.create_connection((match[1], int(match[2]))) as scrape:
            scrape.send(GET)
            assert receive(scrape, 15) == b"HTTP/1.1 200 OK"
        daemon.terminate()
        assert "Traceback" not in daemon.log()
        for client in clients:
            client.close()


HARMFUL = [
    b"Accept: application/openmetrics-text; version=abc\r\n",
    b"Accept: application/openmetrics-text; version=1.0.0-rc1\r\n",
    b'Accept: text/plain;version="0.0.4"\r\n',
    b"Accept: text/plain;version=" + b"9" * 5000 + b"\r\n",
    b"Accept: \xff\xb2\r\n",
]
"""Headers that the client library's negotiation fails on, or nearly."""


def test_no_request_ends_the_daemon() -> None:
    with Daemon("--metrics-address=:0") as daemon:
        match = daemon.wait_logged(r"metrics on http://(127\.0\.0\.1):(\d+)/metrics\n")
        for field in (*HARMFUL, b""):
            with socket.create_connection((match[1], int(match[2])), timeout=10) as scrape:
                scrape.sendall(b"GET /metrics HTTP/1.1\r\n" + field + b"\r\n")
                start = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain"
                assert receive(scrape, len(start)) == start
        daemon.terminate()
        assert "Traceback" not in daemon.log()


def test_the_client_library_is_loaded_only_when_asked_for() -> None:
    program = "import sys, vhost_balloon.__main__; print('prometheus_client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
