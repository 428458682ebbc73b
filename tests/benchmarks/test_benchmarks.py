"""Tests the benchmarks: their statistics, their drivers, and one run of each part.

No test judges a time.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import vhost_user as vu
from protocol import vhost_user_payloads as payloads
from protocol.virtio_balloon import CONFIG_SIZE, CONFIG_SPACE, Queue
from tests.benchmarks import fairness, faults, messages, processes, real_guest, refault
from tests.benchmarks.__main__ import PARTS, main
from tests.benchmarks.device import WrongPages, bytes_left
from tests.benchmarks.memory_kinds import KINDS, Kind
from tests.benchmarks.priority import permitted, placed, preferred
from tests.benchmarks.report import Bar, Row, table
from tests.benchmarks.sides.floor import floors
from tests.benchmarks.sides.qemu import qemu_side
from tests.benchmarks.summary import interval, ratios, summarise
from tests.benchmarks.works import FIRST, PAGE, Work, inflates, reports, single_pages
from tests.rig.errors import RigUnavailable
from tests.rig.fixtures import refuse, required
from tests.rig.memory import MiB
from tests.rig.process import OWN_FORKER
from tests.rig.provisioning.packages import SYSTEMD
from tests.rig.waiting import wait_until
from tests.support.huge_pages import SHMEM_ENABLED, need_root
from tests.support.paths import ROOT
from vhost_balloon.memory.ranges import merge

MEMORY = FIRST + 128 * MiB
WORKS = [
    *(*inflates(MEMORY), *reports(MEMORY), *refault.works(128 * MiB)),
    *(single_pages(20, queue) for queue in (Queue.INFLATE, Queue.REPORTING)),
]


def plausible(rows: list[Row]) -> None:
    """Check that all figures are finite and that the rows can be written and shown."""
    text = json.dumps([row.as_json() for row in rows])
    assert json.loads(text)
    assert table(rows)
    for row in rows:
        assert row.figures()
        for figure in row.figures().values():
            assert math.isfinite(figure.median)
            assert figure.lower_quartile <= figure.median <= figure.upper_quartile


# Statistics and bars


def test_a_summary_has_the_median_and_its_quartiles() -> None:
    found = summarise([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.median, found.lower_quartile, found.upper_quartile) == (3.0, 2.0, 4.0)
    assert found.count == 5


def test_a_single_value_is_its_own_summary() -> None:
    found = summarise([2.0])
    assert {found.median, found.lower_quartile, found.upper_quartile, found.low, found.high} == {2}


def test_the_interval_is_repeatable_and_narrows_with_more_values() -> None:
    few, many = [1.0, 2.0, 3.0], [1.0, 2.0, 3.0] * 30
    assert interval(few) == interval(few) == (1.0, 3.0)
    assert interval(many) == (2.0, 2.0)


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("bar", "values", "met"),
    [
        (Bar("a", 2), [2], True),
        (Bar("a", 2), [1.9], False),
        (Bar("a", 2, at_most=True), [2], True),
        (Bar("a", 2, at_most=True), [2.1], False),
        (Bar("a", 2, by_interval=True), [1, 1.5, 2.2], True),
        (Bar("a", 2, by_interval=True), [1, 1.5, 1.9], False),
        (Bar("a", 2, at_most=True, by_interval=True), [1.9, 2.5, 3], True),
        (Bar("a", 2, at_most=True, by_interval=True), [2.1, 2.5, 3], False),
    ],
)
def test_a_bar_is_met_or_missed(bar: Bar, values: list[float], met: bool) -> None:
    assert bar.met(summarise(values)) is met


def test_a_row_shows_its_quotients_beside_their_bars() -> None:
    values = {"daemon": [4.0, 9.0], "qemu": [2.0, 3.0]}
    row = Row("work", "s", values, {"of qemu": ("daemon", "qemu")}, [Bar("of qemu", 2)])
    assert row.figures()["of qemu"].median == 2.5
    assert row.as_json()["bars"][0]["met"] is True
    assert ">= 2: met" in table([row])


# Requests to the devices


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_a_work_names_whole_pages_once_inside_memory(work: Work) -> None:
    named = work.singly()
    assert len(set(named)) == len(named)
    assert all(FIRST <= start < end <= MEMORY for start, end in named)
    assert sum(end - start for start, end in merge(named)) == work.size > 0
    assert len(work.merged()) == len(work.kicks)
    assert sum(end - start for kick in work.merged() for start, end in kick) == work.size


def test_scattered_pages_never_merge() -> None:
    scattered = {w.name: w for w in inflates(MEMORY)}["inflate scattered, 64 per kick"]
    assert sum(map(len, scattered.merged())) == scattered.size // PAGE


def test_ranges_merge_within_a_kick_only() -> None:
    """As far as a device can merge them before it answers."""
    works = {work.name: work for work in inflates(MEMORY)}
    assert works["inflate contiguous up, 64 per kick"].merged() == [[(FIRST, MEMORY - 64 * MiB)]]
    assert len(works["inflate contiguous up, 1 per kick"].merged()) == 64


@pytest.mark.parametrize("kicks", [1, 3], ids=["in one call", "kick by kick"])
def test_the_floor_frees_exactly_what_a_work_names(kicks: int) -> None:
    pages = [
        (FIRST + 2 * PAGE * number, FIRST + 2 * PAGE * number + PAGE) for number in range(3000)
    ]
    share = len(pages) // kicks
    work = Work("some", Queue.INFLATE, [[pages[at * share :][:share]] for at in range(kicks)])
    with floors(MEMORY) as ways:
        for way in ways:
            way.neighbour.touch([(FIRST, MEMORY)])
            assert way.give_back(work) > 0
            assert bytes_left(way.ram, work, MEMORY) == 0


def test_processors_and_priority_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = OWN_FORKER.submit(os.sched_getaffinity, 0).result()
    with floors(MEMORY) as (way, *_), placed([way.pid], [way.neighbour.pid]):
        ours, theirs = os.sched_getaffinity(0), os.sched_getaffinity(way.pid)
        assert ours == os.sched_getaffinity(way.neighbour.pid)
        assert len(before) == 1 or not ours & theirs
        real_time = os.sched_getscheduler(way.pid) == os.SCHED_FIFO
        assert real_time == permitted() != ("CAP_SYS_NICE" in capfd.readouterr().err)
        with preferred():
            assert (os.sched_getscheduler(0) == os.SCHED_FIFO) == permitted()
    assert os.sched_getaffinity(0) == before
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.guest
def test_qemu_gives_back_exactly_what_its_driver_over_qtest_names() -> None:
    pages = [(FIRST + PAGE * number, FIRST + PAGE * (number + 1)) for number in (3, 1, 7)]
    block = [(FIRST + 4 * MiB, FIRST + 8 * MiB)]
    with qemu_side(MEMORY) as side:
        for queue, request in ((Queue.INFLATE, pages), (Queue.REPORTING, block)):
            work = Work("some", queue, [[request]])
            side.neighbour.touch([(FIRST, MEMORY)])
            side.submit(queue, [request])
            assert bytes_left(side.ram, work, MEMORY) == 0
            with pytest.raises(WrongPages, match="too many"):
                bytes_left(side.ram, Work("less", queue, [[request[:-1]]]), MEMORY)
            more = [*request, (MEMORY - 2 * PAGE, MEMORY - PAGE)]
            assert bytes_left(side.ram, Work("more", queue, [[more]]), MEMORY) == PAGE


# Each part, in its smallest form


@pytest.mark.guest
def test_the_device_part_runs(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    assert main(["device", "--rounds", "1", "--arena", "128", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert {"kernel", "processor", "cores", "qemu"} <= set(found["machine"])
    for row in found["parts"]["device"]:
        assert {"daemon", "qemu"} <= set(row["values"])
        assert row["unit"] == "us" or "floor" in row["values"]
        assert all(value > 0 for values in row["values"].values() for value in values)


def test_the_messages_part_runs() -> None:
    rows = messages.measure(1, counts={messages.ROW: 20, messages.APART: 2})
    plausible(rows)
    assert len(rows) == 8
    assert all(value > 0 for row in rows for series in row.values.values() for value in series)


def test_config_requests_are_those_of_the_simulator() -> None:
    """Which sends QEMU's."""
    get, *_ = messages.requests(vu.Request.GET_CONFIG, 1)
    first, second = messages.requests(vu.Request.SET_CONFIG, 2)
    assert payloads.parse_config(get[vu.HEADER_SIZE :]).payload == bytes(CONFIG_SIZE)
    sent = [payloads.parse_config(data[vu.HEADER_SIZE :]).payload for data in (first, second)]
    assert [CONFIG_SPACE.unpack(payload)[1] for payload in sent] == [256, 257]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_refault_part_runs(kind: Kind, capfd: pytest.CaptureFixture[str]) -> None:
    before = SHMEM_ENABLED.read_text()
    rows = refault.measure(1, arena=128 * MiB, kinds=[kind])
    assert SHMEM_ENABLED.read_text() == before
    if not rows:
        need_root("MEMORY KINDS")
        why = capfd.readouterr().err
        assert not required(), why
        pytest.skip(why)
    plausible(rows)
    found = {row.work: row.values[kind.name][0] for row in rows}
    for size in (2, 4):
        assert found[f"report 32 x {size} MiB, scattered: comes back"] > 99
    assert (found["first use: in huge pages"] > 90) == ("4 KiB" not in kind.name)
    small = found["inflate one page of each 2 MiB: comes back"]
    assert small == 0 if "hugetlb" in kind.name else small > 0


def test_the_setting_comes_back_when_its_process_is_killed() -> None:
    need_root("SHMEM HUGE PAGES")
    before = SHMEM_ENABLED.read_text()
    program = (
        "import os; from tests.support.huge_pages import shmem_enabled as enabled\n"
        "with enabled('advise'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT)
    wait_until(lambda: SHMEM_ENABLED.read_text() == before, 10, AssertionError)


@pytest.mark.guest
def test_the_guest_part_runs() -> None:
    rows = real_guest.measure(1, memory=512 * MiB, size=128 * MiB)
    plausible(rows)
    assert [len(row.values["daemon"]) for row in rows] == [1, 1]


@pytest.mark.guest
def test_the_faults_part_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "KINDS", faults.KINDS[1:2])
    rows = faults.measure(1, memory=512 * MiB, milliseconds=200)
    plausible(rows)
    assert len(rows) == len(faults.LOADS) + 1
    monkeypatch.setattr(faults, "KINDS", faults.KINDS[:1] * 2)
    monkeypatch.setattr(faults, "SETTLE_SECONDS", 0.1)
    plausible([faults.measure_return(1, memory=512 * MiB)])


@pytest.mark.rig(SYSTEMD)
@pytest.mark.timeout(280)
def test_the_processes_part_runs() -> None:
    try:
        rows = processes.measure(2, vms=2, seconds=2.0)
    except RigUnavailable as error:
        refuse(error.reason)
    plausible(rows)
    *others, idle = rows
    assert all(figure.median > 0 for row in others for figure in row.figures().values())
    assert idle.work.startswith("CPU")  # two VMs idle for two seconds may use no CPU


@pytest.mark.timeout(120)
def test_the_fairness_part_runs() -> None:
    rows = fairness.measure(1, seconds=1.0)
    plausible(rows)
    assert [bar.figure for bar in rows[0].bars] == ["beside of alone", "held of alone"]


def test_every_part_has_a_method_in_the_readme() -> None:
    text = (ROOT / "tests/benchmarks/README.md").read_text()
    assert [part for part in PARTS if f"- `{part}`" not in text] == []
