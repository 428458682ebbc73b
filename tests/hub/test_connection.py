"""The hub's connections: kept between scrapes, reopened when necessary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.end_to_end import LogLines
from tests.support.fakes.host_vms import (
    DONE,
    DOWN,
    EVENT,
    GREETING,
    Behaviour,
    answering,
    complete,
    daemons,
    figures,
    full_document,
    good,
    host_of,
    listen,
    of_vm,
    reply,
    saying,
    serve,
)
from vhost_balloon.containment import InternalErrors
from vhost_balloon.hub import connection
from vhost_balloon.hub.connection import MAX_ANSWER
from vhost_balloon.hub.vms import HUB_PLACES, Host


@pytest.fixture
def clock() -> MockClock:
    """Time jumps after 0.2 s without activity; threads take less."""
    return MockClock(autojump_threshold=0.2)


# Connections


async def test_a_connection_is_kept_and_reopened(
    tmp_path: Path, clock: MockClock, log_lines: LogLines
) -> None:
    """After its end, or for a new file: the same scrape has the figures."""
    connected: list[trio.SocketStream] = []
    path = tmp_path / "web1.control"

    def counted(number: int) -> Behaviour:
        async def behave(stream: trio.SocketStream) -> None:
            connected.append(stream)
            await good(number)(stream)

        return behave

    host = host_of(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listen(path), counted(1))
        for _ in range(3):
            assert of_vm(await figures(host), "web1") == await complete(1)
        assert len(connected) == 1
        await connected[0].send_all(EVENT * 50)  # between two scrapes
        assert of_vm(await figures(host), "web1") == await complete(1)
        assert len(connected) == 1
        await connected[0].aclose()  # as in a restart with a socket of the service manager
        assert of_vm(await figures(host), "web1") == await complete(1)
        assert len(connected) == 2
        path.unlink()
        nursery.start_soon(serve, listen(path), counted(2))
        assert of_vm(await figures(host), "web1") == await complete(2)
        assert len(connected) == 3
        path.unlink()
        assert "vm" not in {label for _, labels in await figures(host) for label, _ in labels}
        nursery.cancel_scope.cancel()
    host.close()
    assert log_lines.lines == []


async def test_data_after_an_answer_belongs_to_the_next(tmp_path: Path) -> None:
    host = host_of(tmp_path)
    much = answering(reply([full_document()]), after=b"x" * MAX_ANSWER + b"\n")
    async with daemons(tmp_path, {"web1": much}):
        assert of_vm(await figures(host), "web1") == await complete()
        assert of_vm(await figures(host), "web1") == DOWN
    host.close()


async def test_the_connection_to_a_removed_vm_is_closed(tmp_path: Path) -> None:
    ended = trio.Event()

    async def behave(stream: trio.SocketStream) -> None:
        await good()(stream)
        ended.set()

    host = host_of(tmp_path)
    async with daemons(tmp_path, {"web1": behave}):
        await figures(host)
        (tmp_path / "web1.control").unlink()
        await figures(host)
        with trio.fail_after(5):
            await ended.wait()


async def test_a_counter_may_fall(tmp_path: Path) -> None:
    document = full_document(9)

    async def behave(stream: trio.SocketStream) -> None:
        await answering(reply([document]))(stream)

    name = ("vhost_balloon_freed_bytes_total",)
    host = host_of(tmp_path)
    async with daemons(tmp_path, {"web1": behave}):
        assert of_vm(await figures(host), "web1")[name] == 9 << 20
        host.close()
        document["freed-bytes"] = 5
        assert of_vm(await figures(host), "web1")[name] == 5
    host.close()


async def test_an_answer_cannot_choose_names_or_labels(tmp_path: Path) -> None:
    document = full_document() | {"id": "web2", "state": "flying", "unknown": {"a": [-1]}}
    document["pause-reasons"] = ["whim", "operator", "operator"]
    document["refused-bytes"] = {"poison": 8192, 'x"} 1\nup{vm="web2': 7, "never": "heard"}
    document["ring-errors"] = {"stats": {"loop": 2, "whim": 1}, "door": 5}
    host = host_of(tmp_path)
    async with daemons(tmp_path, {"web1": answering(reply([document]))}):
        found = of_vm(await figures(host), "web1")
    host.close()
    expected = await complete()
    assert found.keys() == expected.keys()
    states = {key: value for key, value in found.items() if key[0] == "vhost_balloon_state"}
    assert not any(states.values())
    assert {**expected, **states} == found


async def test_a_failure_of_the_hub_itself_costs_one_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    real: Callable[[bytearray], Any] = connection._parse

    def parse(line: bytearray) -> Any:
        if b"bug" in line:
            raise ZeroDivisionError
        return real(line)

    monkeypatch.setattr(connection, "_parse", parse)
    errors = InternalErrors(HUB_PLACES)
    host = Host([tmp_path], errors)
    async with daemons(tmp_path, {"web1": good(), "web2": answering(reply("bug"))}):
        found = await figures(host)
    host.close()
    assert of_vm(found, "web1") == await complete()
    assert of_vm(found, "web2") == DOWN
    assert errors.counts["vm"] == 1
    assert log_lines.having("warning: internal error in vm", "ZeroDivisionError")


async def test_answers_in_any_pieces(tmp_path: Path, clock: MockClock) -> None:
    data = EVENT.join([GREETING + DONE, reply([full_document()])])

    def cut(size: int) -> Behaviour:
        async def behave(stream: trio.SocketStream) -> None:
            for start in range(0, len(data), size):
                await stream.send_all(data[start : start + size])
                await trio.lowlevel.checkpoint()
            await trio.sleep_forever()

        return behave

    host = host_of(tmp_path)
    async with daemons(tmp_path, {str(size): cut(size) for size in (1, 2, 7, 100, 4096)}):
        found = await figures(host)
    host.close()
    for size in (1, 2, 7, 100, 4096):
        assert of_vm(found, str(size)) == await complete()


async def test_long_answers_leave_time_for_others(tmp_path: Path) -> None:
    """Many answers of the maximal length: the good VMs still answer in time."""
    long = b'{"return": [' + b"{}," * (MAX_ANSWER // 3 - 100) + b"{}]}\r\n"
    small = EVENT * 250
    bad = {f"long{n}": answering(long) for n in range(30)}
    bad |= {f"many{n}": saying(GREETING + DONE + small + small) for n in range(30)}
    host = host_of(tmp_path)
    async with daemons(tmp_path, {**bad, **{f"good{n}": good() for n in range(5)}}):
        found = await figures(host)
    host.close()
    for n in range(5):
        assert of_vm(found, f"good{n}") == await complete()
    for name in bad:
        assert of_vm(found, name) == DOWN
