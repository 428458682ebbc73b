"""Both text formats: the same content as the client library's, for fewer steps."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

import pytest
import trio
from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector as LibraryCollector
from prometheus_client.registry import Collector, CollectorRegistry
from trio.testing import MockClock

from protocol.virtio_balloon import StatTag
from tests.support.control_client import attach
from tests.support.scrapes import OPENMETRICS, Vms, exposition, samples, scrape, snapshots, two_vms
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.metrics.document import Document
from vhost_balloon.metrics.exposition import MIN_INTERVAL, Exposition, Rows
from vhost_balloon.metrics.families import FAMILIES
from vhost_balloon.metrics.process import ProcessCollector
from vhost_balloon.printable import encodable
from vhost_balloon.vm.settings import VmSettings
from vhost_balloon.vm.vm import Vm

ODD_NAMES = (
    "a",
    'q"uote',
    "back\\slash",
    "new\nline",
    "100%s %d",
    "{vm}",
    "käse 🧀",
    "\udcff",
    "a,b",
)


@pytest.fixture
async def vms() -> Vms:
    return two_vms()


def full(names: Iterable[str]) -> Vms:
    """VMs, three of four with a front end that knows all statistics."""
    vms: Vms = {}
    for number, name in enumerate(names):
        vm = vms[name] = Vm(name, VmSettings(offered=0))
        vm.counters.freed_bytes = number << 33
        vm.counters.refuse(Refusal.UNALIGNED, number)
        vm.counters.discard_seconds.observe(number / 1000)
        if number % 4 < 3:
            stats = {tag: number * 1000 + tag for tag in StatTag}
            attach(vm, target=number, resident=1, stats=stats, stats_age=number / 7)
    return vms


def parse(text: str, accept: str) -> Iterable[Metric]:
    if not accept:
        return text_string_to_metric_families(text)
    assert text.endswith("# EOF\n")
    assert text.count("# EOF") == 1
    families: Iterable[Metric] = openmetrics_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return families


class VmCollector(Collector):
    """All VMs, for the client library."""

    def __init__(self, vms: Vms) -> None:
        self._vms = vms

    def collect(self) -> Iterator[Metric]:
        vms = [(encodable(name), document) for name, document in snapshots(self._vms)]
        for family in FAMILIES:
            read = [(name, family.read(document)) for name, document in vms]
            yield family.metric((name, values) for name, values in read if values is not None)


def by_the_library(vms: Vms, accept: str) -> str:
    registry = CollectorRegistry()
    registry.register(VmCollector(vms))
    if not accept:
        return generate_latest(registry).decode()
    body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    return body.decode()


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "openmetrics"])
async def test_text_says_what_the_client_library_says(accept: str, still_clock: MockClock) -> None:
    vms = full(ODD_NAMES)
    rendered = exposition(vms)
    for _ in range(3):
        still_clock.jump(1)
        ours = samples(parse((await rendered.render(accept))[0].decode(), accept))
        theirs = samples(parse(by_the_library(vms, accept), accept))
        assert ours.items() >= theirs.items()
        rest = {name for name, _ in ours.keys() - theirs.keys()}
        rest -= {name for name in rest if name.startswith("process_")}
        assert rest == {"vhost_balloon_build_info"}
        # Cached text of this scrape must not appear in the next.
        vms["a"].counters.freed_bytes += 1
        vms["new\nline"].front_end = None


def test_process_metrics_are_the_client_librarys() -> None:
    """Between the library's values before and after, which another thread may change."""

    def collected(collector: Collector) -> dict[str, Metric]:
        return {metric.name: metric for metric in collector.collect()}

    before = collected(LibraryCollector(registry=None))
    ours = collected(ProcessCollector())
    after = collected(LibraryCollector(registry=None))
    assert ours.keys() == before.keys()
    for name, metric in ours.items():
        assert (metric.type, metric.documentation) == (
            before[name].type,
            before[name].documentation,
        )
        (sample,), (first,), (last,) = metric.samples, before[name].samples, after[name].samples
        assert sample.name == first.name
        low, high = sorted([first.value, last.value])
        assert 0.9 * low - 1 <= sample.value <= 1.1 * high + 1


async def test_odd_names_come_back_as_they_are() -> None:
    found = await scrape(full(ODD_NAMES))
    names = {dict(labels)["vm"] for name, labels in found if name == "vhost_balloon_connected"}
    assert names == {"\\udcff" if name == "\udcff" else name for name in ODD_NAMES}


async def test_there_are_exactly_two_formats(vms: Vms) -> None:
    rendered = exposition(vms)
    accepts = [f"application/openmetrics-text;version=1.{n}" for n in range(50)]
    accepts += ["", "*/*", OPENMETRICS, "x" * 5000, "version=y", "text/plain;version=1.0.0"]
    types = [(await rendered.render(accept))[1] for accept in accepts]
    assert set(types) == {
        "text/plain; version=0.0.4; charset=utf-8",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    }
    assert types.count("application/openmetrics-text; version=1.0.0; charset=utf-8") == 1


@pytest.mark.parametrize("encode", [generate_latest, openmetrics.generate_latest])
def test_encoders_need_nothing_but_a_collector(encode: Callable[..., bytes]) -> None:
    """Their other parameters default to these formats."""
    _, *others = inspect.signature(encode).parameters.values()
    known = {"escaping": "underscores", "version": "1.0.0"}
    assert all(parameter.default == known[parameter.name] for parameter in others)


async def test_names_need_no_escaping() -> None:
    found = await scrape(full(["a"]))
    assert {name for name, _ in found if not re.fullmatch("[a-z_:][a-z0-9_:]*", name)} == set()


async def test_scrapes_within_the_interval_share_a_text(vms: Vms, still_clock: MockClock) -> None:
    made: list[int] = []

    async def count() -> Rows:
        made.append(1)
        return snapshots(vms)

    rendered = Exposition(count)
    first, _ = await rendered.render("")
    vms["web1"].counters.freed_bytes = 5
    still_clock.jump(MIN_INTERVAL / 2)
    assert (await rendered.render(""))[0] is first
    assert len(made) == 1
    still_clock.jump(MIN_INTERVAL / 2)
    assert b'freed_bytes_total{vm="web1"} 5' in (await rendered.render(""))[0]


async def test_scrapes_while_the_vms_are_asked_share_the_answers(
    vms: Vms, autojump_clock: MockClock
) -> None:
    """Even if the client that started it leaves."""
    made: list[float] = []

    async def slowly() -> Rows:
        made.append(trio.current_time())
        await trio.sleep(1)
        return snapshots(vms)

    rendered, bodies = Exposition(slowly), list[bytes]()

    async def scraped(accept: str) -> None:
        bodies.append((await rendered.render(accept))[0])

    async with trio.open_nursery() as nursery:
        for seconds in (0.5, math.inf):
            with trio.move_on_after(seconds):
                nursery.start_soon(scraped, "")
                nursery.start_soon(scraped, OPENMETRICS)
                if seconds < math.inf:
                    await rendered.render("")
    assert len(made) == 1
    assert len(set(bodies)) == 2
    assert len(bodies) == 4


async def test_a_vm_without_a_snapshot_has_only_up(vms: Vms, still_clock: MockClock) -> None:
    rows: list[tuple[str, Document | None]] = [*snapshots(vms)]

    async def ask() -> Rows:
        return rows

    rendered = Exposition(ask)
    before, _ = await rendered.render("")
    rows[0] = ("web1", None)
    still_clock.jump(1)
    after, _ = await rendered.render("")
    of_web1 = [line for line in after.splitlines() if b'vm="web1"' in line]
    assert of_web1 == [b'vhost_balloon_up{vm="web1"} 0']
    assert after.count(b'vm="web2"') == before.count(b'vm="web2"') > 100


async def python_calls(number: int, clock: MockClock) -> int:
    """Calls of Python functions in the second scrape of so many VMs."""
    vms, rows, calls = full(f"web{n}" for n in range(number)), list[Rows](), 0

    async def ask() -> Rows:
        return rows[-1]

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    rendered = Exposition(ask)
    for profile in (None, count):
        for vm in vms.values():  # a busy host: much has changed
            vm.counters.reported_bytes += 1
            vm.counters.discard_seconds.observe(0.01)
        rows.append(snapshots(vms))
        clock.jump(1)
        sys.setprofile(profile)
        await rendered.render(OPENMETRICS)
        sys.setprofile(None)
    return calls


async def test_a_vm_costs_few_calls(still_clock: MockClock) -> None:
    """The client library makes several calls for each of 140 lines."""
    calls = await python_calls(200, still_clock) - await python_calls(100, still_clock)
    assert calls / 100 < 3 * len(FAMILIES)
