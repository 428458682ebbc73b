"""Documents of older versions are lifted; a guest is served on those of version 2.

version_2.json holds all documents of a VM that a daemon of version 2 served: a DIMM, a broken ring,
a stopped ring, a message received in part, refused ranges, statistics and a target.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from protocol.vhost_user import HEADER, VERSION, Request
from protocol.virtio_balloon import Queue, StatTag
from tests.support.end_to_end import BLOCK, MIB, PAGE, by_hand, eventually, fill
from tests.support.restarting.scenario import GUEST, Host, hosting, records, set_version
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.balloon.guest_stats import GuestStats, restore_stats
from vhost_balloon.errors import RingErrorReason, StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end import documents
from vhost_balloon.restart import migrations
from vhost_balloon.restart.migrations import lift
from vhost_balloon.restart.records import LeftRecord, read_areas, restore_vm
from vhost_balloon.restart.taking_over import take_over
from vhost_balloon.session.session import Session
from vhost_balloon.simulator.events import EventFd
from vhost_balloon.store.journal import Entry, Phase
from vhost_balloon.store.record import DOCUMENTS, STATE_VERSION, Record
from vhost_balloon.vm.vm import Vm

RECORDED: Final = Path(__file__).with_name("version_2.json")


def recorded() -> dict[str, Any]:
    areas: dict[str, Any] = json.loads(RECORDED.read_text())
    return areas


# Steps


def test_older_documents_are_lifted_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {1: lambda areas: areas | {"a": 1}, 2: lambda areas: {"b": areas["a"] + 1}}
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    assert lift({}, 1, 3) == {"b": 2}
    assert lift({"c": 0}, 3, 3) == {"c": 0}
    with pytest.raises(StateError, match="version 2: KeyError"):
        lift({}, 2, 3)
    with pytest.raises(StateError, match="version 0 is no longer supported"):
        lift({}, 0, 3)


# As version 2 wrote them


def as_version_3(areas: dict[str, Any]) -> dict[str, Any]:
    """The documents of this version as version 3 would have written them, without a target."""
    found: dict[str, Any] = json.loads(json.dumps(areas))
    if found["balloon"] is not None:
        found["balloon"] = {"target": found["balloon"].pop("order")} | found["balloon"]
        found["balloon"].pop("held-until", None)
    if found["stats"] is not None:
        del found["stats"]["guest-total"]
        found["stats"].pop("actual", None)
    if "regions" in (found["connection"] or {}):
        del found["connection"]["judged"]
        for region in found["connection"]["regions"]:
            del region["left-out"], region["untouched"]
    return found


def as_version_2(areas: dict[str, Any]) -> dict[str, Any]:
    """The documents of version 3 as version 2 would have written them."""
    found: dict[str, Any] = json.loads(json.dumps(areas))
    found["vm"]["crashes"] = list(found["vm"]["crashes"].values())
    counters = found["counters"]
    found["counters"] = {
        "plain": list(counters["totals"].values()),
        "refused": [list(map(list, by.items())) for by in counters["refused"].values()],
        "requests": list(counters["requests"].values()),
        "ring-errors": [list(entry.values()) for entry in counters["ring-errors"]],
        "discard-seconds": list(counters["discard-seconds"].values()),
    }
    if found["connection"] is not None:
        found["balloon"] = list(found["balloon"].values())
        old_connection(found["connection"])
    return found


def old_connection(document: dict[str, Any]) -> None:
    document["applied"] = list(document["applied"].values())
    if document["partial"] and document["partial"]["unsure"]:
        document["partial"]["unsure"] = list(document["partial"]["unsure"].values())
    if "inert" in document:
        return
    for ring in document["session"]["rings"]:
        ring["address"] = ring["address"] and list(ring["address"].values())
    for owner, key in (
        (document["session"], "returned-bases"),
        *((document, key) for key in ("regions", "rings", "calls", "errs")),
    ):
        owner[key] = [list(entry.values()) for entry in owner[key]]


def demote(host: Host) -> None:
    """Rewrite the record, in place, as version 2 would have written it."""
    (fd,) = records(host)
    with closing(Record(OwnedFd(os.dup(fd)))) as record:
        areas = {area: record.load(area) for area in DOCUMENTS}
        for area, document in as_version_2(as_version_3(areas)).items():
            record.save(area, document)
    set_version(fd, 2)


# Recorded documents


def test_recorded_documents_are_lifted_without_loss() -> None:
    lifted = lift(recorded(), 2, 3)
    assert lifted != recorded()
    assert as_version_2(lifted) == recorded()
    now = lift(lifted, 3, STATE_VERSION)
    assert now["balloon"]["order"] is None, "it has become num_pages"
    assert as_version_3(now) == lifted | {"balloon": lifted["balloon"] | {"target": None}}


def test_a_target_of_version_3_that_was_not_due_is_an_order() -> None:
    areas = lift(recorded(), 2, 3)
    areas["connection"]["regions"] = []
    lifted = lift(areas, 3, STATE_VERSION)
    assert lifted["balloon"]["order"] == areas["balloon"]["target"] == 40 * MIB
    assert "target" not in lifted["balloon"]


async def test_recorded_documents_are_restored(vm: Vm) -> None:
    areas = lift(recorded(), 2, STATE_VERSION)
    restore_vm(vm, areas)
    counters = vm.counters
    assert vm.paused
    assert (counters.reported_bytes, counters.inflated_bytes) == (4 * MIB, 8192)
    assert counters.refused_bytes == {"outside-memory": 4096}
    assert counters.requests == {Queue.INFLATE: 2, Queue.STATS: 1, Queue.REPORTING: 1}
    assert counters.ring_errors == {("deflate", RingErrorReason.HEAD): 1}
    assert sum(counters.discard_seconds.counts) == 3

    connection = areas["connection"]
    session = Session(Balloon(), 0)
    documents.restore_session(session, connection["session"])
    documents.restore_balloon(session, areas["balloon"])
    assert session.started == [0, 1, 2]
    assert session.returned_bases == {3: 1}
    assert session.config_unread
    assert session.balloon.snapshot() == (None, 10240, 7, 0, 0)
    regions = [documents.read_region(entry) for entry in connection["regions"]]
    assert [(r.guest_address, r.size) for r in regions] == [(0, 64 * MIB), (1 << 32, 16 * MIB)]
    positions = [documents.read_position(entry) for entry in connection["rings"]]
    assert [(p.lead, p.base) for p in positions] == [(0, 2), (0, 0), (0, 1)]
    assert positions[1].broken is RingErrorReason.HEAD
    assert len(documents.read_eventfds(connection["calls"])) == 5
    assert documents.read_partial(connection["partial"]).data[0] == Request.SET_VRING_CALL
    assert documents.read_applied(connection["applied"]) == (56, None)
    stats = GuestStats()
    restore_stats(stats, areas["stats"])
    assert stats.values[StatTag.MEMFREE] == 7 * MIB


@pytest.mark.parametrize(
    "connection",
    [
        None,
        {"inert": "its state was lost", "socket": ".connection-1"},
        {
            "inert": "why",
            "socket": ".connection-1",
            "answers": {"status": 0, "config": "00" * 16, "bases": [[0, 1]]},
            "partial": {
                "data": "01",
                "fds": [],
                "skipped": 0,
                "fds-lost": False,
                "unsure": [1, 3],
            },
            "applied": [7, None],
        },
    ],
)
def test_a_vm_without_a_device_is_lifted(connection: dict[str, Any] | None) -> None:
    areas = recorded() | {"connection": connection, "balloon": None, "stats": None}
    lifted = lift(areas, 2, STATE_VERSION)["connection"]
    assert (lifted is None) == (connection is None)
    if connection is not None and "applied" in connection:
        assert documents.read_applied(lifted["applied"]) == (7, None)
        assert documents.read_partial(lifted["partial"]).unsure == (1, 3)


@pytest.mark.parametrize("area", ["vm", "connection", "balloon", "counters"])
def test_other_documents_of_version_2_are_not_lifted(area: str) -> None:
    with pytest.raises(StateError, match="state of version 2: "):
        lift(recorded() | {area: {"crashes": [1], "partial": None, "applied": []}}, 2, 3)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("is_applied", [True, False])
async def test_a_request_in_flight_moves_to_the_new_record(
    vm: Vm, phase: Phase, is_applied: bool
) -> None:
    old = Record.create()
    old.version = 2
    steps = (old.journal.taken, lambda: old.journal.done(b"yes"), old.journal.sending)
    for _ in range(3):
        old.journal.begin(b"request", ("27.0",))
    for step in (*steps, old.journal.sent)[: phase - Phase.SEEN]:
        step()
    for area, document in recorded().items():
        old.save(area, document)
    applied = [3 if is_applied else 2, None]
    old.save("connection", recorded()["connection"] | {"applied": applied})
    await take_over(vm, LeftRecord(".record-1", old, read_areas(old)), [])
    assert vm.record is not None
    entry, sequence = (
        vm.record.journal.latest(),
        vm.record.load("connection")["applied"]["sequence"],
    )
    if phase is Phase.SENT:
        assert (entry, sequence) == (None, 0)
    else:
        reply = b"yes" if phase >= Phase.DONE else None
        assert entry == Entry(1, phase, b"request", ("27.0",), reply)
        assert sequence == (1 if is_applied else 0)
    vm.close()


# Under a guest


async def test_a_guest_is_served_on_a_record_of_version_2(tmp_path: Path) -> None:
    """With each part of the state in use: memory, rings, a broken ring, a message in parts."""
    async with hosting(tmp_path) as host, by_hand(host.path(), GUEST) as guest:
        dimm = guest.ram.add(16 * MIB, 1 << 32)
        await guest.front_end.add_region(dimm)
        host.ask("balloon", value=48 * MIB)
        await guest.inflate([5000, 1 << 31])
        await guest.front_end.set_config(slice(4, 8), (7).to_bytes(4, "little"))
        deflate = guest.rings[Queue.DEFLATE]
        deflate.publish(deflate.size + 1)  # no such head
        deflate.kick()
        await eventually(lambda: host.vm()["queues"][1]["broken"] == "head")
        call = guest.front_end.ports[0].call = EventFd()
        guest.rings[Queue.INFLATE].call_event = call
        data = HEADER.pack(Request.SET_VRING_CALL, VERSION, 8) + bytes(8)
        await guest.front_end.send_raw(data[:15], [call.fileno()])
        await guest.report((32 * MIB, BLOCK))  # the part has been received
        fill(guest.ram, 5001 * PAGE, PAGE)
        before = host.vm()

        host.manager.stop(signal.SIGKILL)
        demote(host)
        host.manager.start()
        assert f"a record of version 2 was read as {STATE_VERSION}" in host.log()
        await guest.front_end.send_raw(data[15:])
        with trio.fail_after(10):
            await guest.inflate([5001])
        after = host.vm()
        assert (after["target"], after["actual"]) == (48 * MIB, before["actual"])
        assert after["pause-reasons"] == []
        assert after["freed-bytes"] > before["freed-bytes"]
        assert after["requests"]["inflate"] == 2
        assert after["refused-bytes"]["outside-memory"] == 4096
        assert after["queues"][1]["broken"] == "head"
        await guest.report((1 << 32, BLOCK))
        await guest.front_end.remove_region(dimm)
        await guest.stop()
        guest.fresh()
        await guest.start()
        await guest.inflate([5002])
        host.manager.kill()
        await guest.inflate([5003])
        assert host.log().count("was read as") == 1, "the record was replaced"
