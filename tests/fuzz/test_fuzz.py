"""The fuzz targets: replays findings, runs mutations, and checks that each target can find bugs.

Repeatable, with a fixed number of inputs; `python -m tests.fuzz` tries new ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from protocol import json_value, qmp
from protocol.vhost_user_payloads import Region
from tests.fuzz.driver import Finding, Target, error_of, fuzz, keep, kind, shorten
from tests.fuzz.targets import TARGETS
from tests.support.helpers import mapped_regions
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.carrying_out import EffectExecutor
from vhost_balloon.log.lines import logger
from vhost_balloon.memory.ranges import Range
from vhost_balloon.memory.vector import RangeVector
from vhost_balloon.metrics import exposition as metrics_text
from vhost_balloon.metrics.accept import MediaType, negotiate
from vhost_balloon.metrics.http import Request, RequestReader
from vhost_balloon.queues.virtqueue import Virtqueue
from vhost_balloon.restart import reattach as resume
from vhost_balloon.session import requests
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import Session

INPUTS = {"messages": 600, "rings": 4000, "control": 300, "http": 500, "state": 1000}
"""Number of inputs per target; about five seconds each target."""

KEPT = [(target, path) for target in TARGETS.values() for path in target.kept()]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silence the log while the inputs run."""
    logger.propagate = False
    yield
    logger.propagate = True


@pytest.mark.parametrize(
    ("target", "path"), KEPT, ids=[f"{target.name}-{path.name}" for target, path in KEPT]
)
def test_what_was_found_stays_mended(target: Target, path: Path) -> None:
    target.run(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_nothing_is_found(target: Target) -> None:
    for finding in islice(fuzz(target, seed=1), INPUTS.get(target.name, 1000)):
        if finding is not None:
            finding = shorten(target, finding)
            pytest.fail(f"{finding.data.hex()} breaks: {target.invariant}\n{finding.error!r}")


# Each target can find a bug

publish, encode, feed = Virtqueue.publish, qmp.encode, RequestReader.feed
left_open: list[OwnedFd] = []


def _no_reply(session: Session, message: Message) -> None:
    """Send no reply to a refused request."""


async def _keep_region(executor: EffectExecutor, region: Region) -> None:
    memory = executor._guest.memory
    gone = next(mapped for mapped in mapped_regions(memory) if mapped.region == region)
    memory.remove(gone)
    left_open.append(OwnedFd(os.dup(gone.fd.fileno())))


def _protect_nothing(ranges: RangeVector, holes: list[Range]) -> RangeVector:
    return ranges


def _publish_more(virtqueue: Virtqueue) -> None:
    virtqueue.push(0)
    publish(virtqueue)


def _encode_twice(message: qmp.Object) -> bytes:
    return encode(message) * (1 + ("error" in message))


def _no_integer(text: bytes) -> int:
    return {b"1": 1}[text]


def _versions_as_numbers(accept: str) -> MediaType:
    for version in re.findall("version=([^;,]*)", accept):
        list(map(int, version.split(".")))
    return negotiate(accept)


def _forget(reader: RequestReader, data: bytes) -> Request | None:
    return feed(RequestReader(), data)


def _no_check(regions: object, region: Region) -> None:
    raise ZeroDivisionError


BUGS = [
    ("messages", requests, "refuse", _no_reply),
    ("messages", EffectExecutor, "_remove_region", _keep_region),
    ("rings", RangeVector, "without", _protect_nothing),
    ("rings", Virtqueue, "publish", _publish_more),
    ("control", qmp, "encode", _encode_twice),
    ("control", json_value, "_integer", _no_integer),
    ("http", metrics_text, "negotiate", _versions_as_numbers),
    ("http", RequestReader, "feed", _forget),
    ("state", resume, "check_disjoint", _no_check),
]


@pytest.mark.parametrize(("name", "owner", "attribute", "bug"), BUGS)
def test_a_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, owner: object, attribute: str, bug: object
) -> None:
    monkeypatch.setattr(owner, attribute, bug)
    findings = islice(fuzz(TARGETS[name], seed=1), 500)
    assert next(filter(None, findings), None) is not None
    left_open.clear()


# The driver


def _broken(data: bytes) -> None:
    if b"\xff" in data and b"\x80" in data:
        raise ExceptionGroup("", [ZeroDivisionError()])


TOY = Target("toy", "none", _broken, [b"seed"], [b"\xff", b"\x80"])


def test_a_finding_is_shortened_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.driver.CORPUS", tmp_path)
    found = next(filter(None, fuzz(TOY, seed=7)))
    short = shorten(TOY, found)
    assert sorted(short.data) == [0x80, 0xFF]
    path = keep(TOY, short)
    assert path.name.startswith("zerodivisionerror-")
    assert TOY.kept() == [path]
    assert TOY.start() == [b"seed", short.data]


def test_a_seed_repeats() -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        target = TOY._replace(run=seen.append)
        list(islice(fuzz(target, seed), 50))
        return seen

    assert inputs(3) == inputs(3) != inputs(4)


def test_an_error_is_named_by_what_is_inside_its_groups() -> None:
    error = error_of(TOY, b"\xff\x80")
    assert error is not None
    assert kind(error) == "ZeroDivisionError"
    assert Finding(b"", error).error is error
