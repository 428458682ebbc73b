"""The hub queries all VMs at once and trusts none of them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

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
    breaking_off,
    complete,
    daemons,
    dripping,
    endless,
    figures,
    full_document,
    good,
    host_of,
    of_vm,
    reply,
    saying,
)
from vhost_balloon.hub.connection import MAX_ANSWER
from vhost_balloon.hub.vms import PATIENCE

EVENTLESS = GREETING + DONE


@pytest.fixture
def clock() -> MockClock:
    """Time jumps after 0.2 s without activity; threads take less."""
    return MockClock(autojump_threshold=0.2)


def figure(name: str, value: object) -> bytes:
    """An answer with another value of a member; bytes are inserted into the JSON text."""
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
    "sends invalid UTF-8": answering(b'{"return": "\xff"}\r\n'),
    "sends invalid JSON": answering(b'{"return": \r\n'),
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


async def test_bad_vms_beside_a_good_one(
    short_folder: Path, clock: MockClock, log_lines: LogLines
) -> None:
    """Twice, because leftovers of the first scrape must not harm the second."""
    host = host_of(short_folder)
    async with daemons(short_folder, {**BAD, "good": good()}):
        for _ in range(2):
            began = trio.current_time()
            found = await figures(host)
            assert trio.current_time() - began < PATIENCE + 0.5
            assert of_vm(found, "good") == await complete()
            for name in BAD:
                assert of_vm(found, name) == DOWN, name
    host.close()
    said = [line for line in log_lines.lines if line.startswith("warning: ")]
    assert len(said) == len(BAD), "one line each, not one per scrape"
    assert sorted(line.split(": ")[1] for line in said) == sorted(BAD)
    assert not any("good" in line.split(": ")[1:2] for line in said)


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_vm_that_recovers_is_shown_again(
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
    assert sum(sent) < 4 * MAX_ANSWER  # including the kernel's buffers


async def test_no_listener_a_full_backlog_and_other_files(tmp_path: Path) -> None:
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
