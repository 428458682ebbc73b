"""The hub: finds VMs, asks them all at once, and believes none of them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from tests.end_to_end import LogLines
from tests.host_vms import (
    DONE,
    EVENT,
    GREETING,
    Behaviour,
    answering,
    breaking_off,
    daemons,
    dripping,
    endless,
    full_document,
    good,
    listen,
    reply,
    saying,
    serve,
)
from tests.scrapes import Samples, samples
from vhost_balloon.containment import InternalErrors
from vhost_balloon.hub import connection
from vhost_balloon.hub.connection import MAX_ANSWER
from vhost_balloon.hub.vms import PATIENCE, PLACES, Host
from vhost_balloon.metrics_text import Exposition, Rows

EVENTLESS = GREETING + DONE


@pytest.fixture
def clock() -> MockClock:
    """Time jumps where nothing happens for a moment; a thread takes less."""
    return MockClock(autojump_threshold=0.2)


def host_of(*folders: Path, most: int = 100) -> Host:
    return Host(folders, InternalErrors(PLACES), most)


async def figures(host: Host) -> Samples:
    """What a scrape says."""
    body, _ = await Exposition(host.snapshots).render("")
    return samples(text_string_to_metric_families(body.decode()))


def of_vm(found: Samples, vm: str) -> dict[tuple[Any, ...], float]:
    """A VM's figures, without its name."""
    return {
        (name, *(label for label in labels if label[0] != "vm")): value
        for (name, labels), value in found.items()
        if ("vm", vm) in labels
    }


async def complete(number: int = 1) -> dict[tuple[Any, ...], float]:
    """All figures of full_document(), as its daemon's own address would give them."""

    async def ask() -> Rows:
        return [("x", full_document(number))]

    body, _ = await Exposition(ask).render("")
    return of_vm(samples(text_string_to_metric_families(body.decode())), "x")


DOWN = {("vhost_balloon_up",): 0.0}


def figure(name: str, value: object) -> bytes:
    """An answer with another value of a member, in JSON or as bytes that are to be JSON."""
    document = full_document()
    if isinstance(value, bytes):
        text = json.dumps([{**document, name: "@"}]).replace('"@"', value.decode())
        return b'{"return": ' + text.encode() + b"}\r\n"
    return reply([{**document, name: value}])


NESTED = b"[" * 100_000 + b"]" * 100_000
BAD: dict[str, Behaviour] = {
    "never speaks": saying(),
    "stops after the greeting": saying(GREETING),
    "stops after the negotiation": saying(EVENTLESS),
    "stops in the answer": saying(EVENTLESS, reply([full_document()])[:-9]),
    "drips": dripping(EVENTLESS + reply([full_document()])),
    "closes at once": breaking_off(),
    "closes in the greeting": breaking_off(GREETING[:5]),
    "closes after the greeting": breaking_off(GREETING),
    "closes in the answer": breaking_off(EVENTLESS, reply([full_document()])[:-9]),
    "floods with events": endless(EVENTLESS, EVENT * 100),
    "floods with small messages": endless(EVENTLESS, b'{"event": 1}\n' * 1000),
    "floods with empty lines": endless(EVENTLESS, b"\n" * 10_000),
    "floods before the greeting": endless(b"", EVENT),
    "answers with 1 GiB": endless(EVENTLESS + b'{"return": "', b"x" * 65536),
    "greets with 1 GiB": endless(b"", b" " * 65536),
    "speaks HTTP": saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "greets with an array": saying(b"[]\n"),
    "greets without QMP": saying(b'{"return": {}}\n' * 3),
    "greets with words": saying(b'{"QMP": "yes"}\n' + DONE * 2),
    "refuses": answering(b'{"error": {"class": "GenericError", "desc": "no"}}\r\n'),
    "is no UTF-8": answering(b'{"return": "\xff"}\r\n'),
    "is no JSON": answering(b'{"return": \r\n'),
    "is nested deeply": answering(b'{"return": ' + NESTED + b"}\r\n"),
    "has members twice": answering(figure("target", b'1, "target": 2')),
    "has half a character": answering(figure("state", b'"\\ud800"')),
    "has NaN": answering(figure("target", b"NaN")),
    "has infinity": answering(figure("target", b"-Infinity")),
    "has a number out of range": answering(figure("stats-age", b"1e999")),
    "has a number of many digits": answering(figure("target", b"9" * 100_000)),
    "has a number of some digits": answering(figure("target", b"9" * 4000)),
    "has a negative number": answering(figure("actual", -1)),
    "has a flag for a number": answering(figure("actual", True)),
    "has words for a number": answering(figure("actual", "1")),
    "has null for a number": answering(figure("actual", None)),
    "has a number for a flag": answering(figure("attached", 1)),
    "has a list for a state": answering(figure("state", ["done"])),
    "has no list of reasons": answering(figure("pause-reasons", "operator")),
    "has a list in it": answering(figure("pause-reasons", [["operator"]])),
    "counts by a list": answering(figure("refused-bytes", [1])),
    "counts in words": answering(figure("refused-ranges", {"late": "many"})),
    "has no rings": answering(figure("ring-errors", 5)),
    "has rings without reasons": answering(figure("ring-errors", {"inflate": 1})),
    "has other buckets": answering(figure("discard-seconds", {"counts": [1], "sum": 1})),
    "has no sum": answering(figure("discard-seconds", {"counts": [0] * 9})),
    "has no snapshot": answering(reply([{}])),
    "has no VM": answering(reply([])),
    "has two VMs": answering(reply([full_document()] * 2)),
    "has an object": answering(reply(full_document())),
    "has null": answering(reply(None)),
}


async def test_all_that_can_be_wrong_beside_a_good_vm(
    tmp_path: Path, clock: MockClock, log_lines: LogLines
) -> None:
    """Twice: nothing that was left of the first time hurts in the second."""
    host = host_of(tmp_path)
    async with daemons(tmp_path, {**BAD, "good": good()}):
        for _ in range(2):
            began = trio.current_time()
            found = await figures(host)
            assert trio.current_time() - began < PATIENCE + 0.5
            assert of_vm(found, "good") == await complete()
            for name in BAD:
                assert of_vm(found, name) == DOWN, name
    host.close()
    said = [line for line in log_lines.lines if line.startswith("warning: ")]
    assert len(said) == len(BAD), "one line each, not one a scrape"
    assert sorted(line.split(": ")[1] for line in said) == sorted(BAD)
    assert not any("good" in line.split(": ")[1:2] for line in said)


@pytest.mark.parametrize("name", BAD)
async def test_whoever_mends_its_ways_is_shown_again(
    tmp_path: Path, clock: MockClock, log_lines: LogLines, name: str
) -> None:
    host, behaviour = host_of(tmp_path), BAD[name]

    async def behave(stream: trio.SocketStream) -> None:
        await behaviour(stream)

    async with daemons(tmp_path, {"web1": behave}):
        assert of_vm(await figures(host), "web1") == DOWN
        behaviour = good()
        for _ in range(2):
            assert of_vm(await figures(host), "web1") == await complete()
    host.close()
    assert [line.split(": ")[0] for line in log_lines.lines] == ["warning", "info"]
    assert log_lines.lines[1] == "info: web1: its daemon answers again"


async def test_a_flood_is_not_read_to_its_end(tmp_path: Path, clock: MockClock) -> None:
    sent: list[int] = []

    async def flood(stream: trio.SocketStream) -> None:
        await stream.send_all(EVENTLESS + b'{"return": "')
        while True:
            await stream.send_all(b"x" * 65536)
            sent.append(65536)

    host = host_of(tmp_path)
    async with daemons(tmp_path, {"web1": flood}):
        assert of_vm(await figures(host), "web1") == DOWN
    assert sum(sent) < 4 * MAX_ANSWER  # with what the kernel takes


async def test_no_listener_a_full_backlog_and_what_is_no_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as full:
        dead.bind(str(tmp_path / "dead.control"))
        full.bind(str(tmp_path / "full.control"))
        full.listen(0)
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in crowd:
            one.setblocking(False)
            try:
                one.connect(str(tmp_path / "full.control"))
            except BlockingIOError:
                break
        else:
            pytest.fail("the backlog is not full")
        (tmp_path / "file.control").write_text("")
        (tmp_path / "folder.control").mkdir()
        (tmp_path / "link.control").symlink_to("good.control")
        (tmp_path / ".control").write_text("")
        os.mkfifo(tmp_path / "fifo.control")
        async with daemons(tmp_path, {"good": good(), "other": good(2)}):
            (tmp_path / "other.control").rename(tmp_path / "other.sock")
            host = host_of(tmp_path)
            with trio.fail_after(PATIENCE / 2):
                found = await figures(host)
            host.close()
        for one in crowd:
            one.close()
    assert {dict(labels)["vm"] for name, labels in found if name == "vhost_balloon_up"} == {
        "dead",
        "full",
        "good",
    }
    assert of_vm(found, "dead") == of_vm(found, "full") == DOWN
    assert of_vm(found, "good") == await complete()


# Connections


async def test_a_connection_is_kept_and_made_anew(
    tmp_path: Path, clock: MockClock, log_lines: LogLines
) -> None:
    """For another file, or where it ended: the same scrape has the figures."""
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
        await connected[0].aclose()  # a restart behind a socket of the service manager
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


async def test_what_comes_behind_an_answer_counts_for_the_next(tmp_path: Path) -> None:
    host = host_of(tmp_path)
    much = answering(reply([full_document()]), after=b"x" * MAX_ANSWER + b"\n")
    async with daemons(tmp_path, {"web1": much}):
        assert of_vm(await figures(host), "web1") == await complete()
        assert of_vm(await figures(host), "web1") == DOWN
    host.close()


async def test_nothing_is_kept_of_a_vm_that_went(tmp_path: Path) -> None:
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


async def test_a_counter_that_falls_is_passed_on(tmp_path: Path) -> None:
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


async def test_a_vm_has_no_word_in_its_name_or_its_labels(tmp_path: Path) -> None:
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
    errors = InternalErrors(PLACES)
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
    """The most that may be parsed, many times over: the good VMs are there in their time."""
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
