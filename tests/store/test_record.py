"""A VM's record: files that can and cannot be opened, and the documents in them."""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any
from zlib import crc32

import pytest

from tests.support.helpers import PAGE, memfd
from vhost_balloon.errors import RingErrorReason, StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.service.listeners import SocketOptions
from vhost_balloon.store.record import AREAS, MAGIC, STATE_VERSION, Record
from vhost_balloon.vm.settings import VmSettings, settings_to_json

Header = dict[str, Any]
MAX_GROUP = 256
"""LOGIN_NAME_MAX: the longest realistic name of a group."""
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def header(**changes: Any) -> Header:
    places, at = {}, 1024
    for name, size in AREAS.items():
        places[name] = [at, size]
        at += size
    return {"version": 1, "build": "x", "generation": 0, "areas": places} | changes


def file(text: bytes, *, size: int = 1 << 21, seals: int = SEALS, magic: bytes = MAGIC) -> OwnedFd:
    """A record's file with this header."""
    fd = memfd(size, seals=seals)
    head = magic + len(text).to_bytes(4, "little") + crc32(text).to_bytes(4, "little")
    os.pwrite(fd.fileno(), head + text, 0)
    return fd


def of(document: object, **options: Any) -> OwnedFd:
    return file(json.dumps(document).encode(), **options)


def again(record: Record) -> Record:
    """The same record, as the next process opens it."""
    return Record(OwnedFd(os.dup(record.fd.fileno())))


def test_documents_and_journal_are_there_for_the_next_process() -> None:
    record = Record.create(7)
    assert all(record.load(area) is None for area in AREAS if area != "journal")
    record.save("vm", {"settings": [1, "é"]})
    record.save("connection", None)
    record.journal.begin(b"request")
    other = again(record)
    assert (other.version, other.generation) == (STATE_VERSION, 7)
    assert other.load("vm") == {"settings": [1, "é"]}
    assert other.load("connection") is other.load("stats") is None
    entry = other.journal.latest()
    assert entry is not None
    assert entry.request == b"request"
    other.close()
    record.close()
    assert record.fd.closed


def test_a_layout_with_other_places_and_more_areas_is_read() -> None:
    places = {name: [(3 << 19) - (at + 1) * 8192, 8192] for at, name in enumerate(AREAS)}
    record = Record(of(header(areas=places | {"later": [1024, 4096]}, version=9, extra=[])))
    record.save("balloon", [1])
    assert again(record).load("balloon") == [1]
    assert again(record).version == 9


WRONG = {
    "not a record": lambda: file(b"{}", magic=b"\x7fELF    "),
    "header is damaged": lambda: file(b"{" * 2000),
    "not JSON": lambda: file(b"{" * 100),
    "have 0 bytes": lambda: memfd(0, seals=SEALS),
    "have 1024 bytes": lambda: memfd(1024, seals=SEALS),
    "not sealed": lambda: of(header(), seals=0),
    "TypeError": lambda: of([1]),
    "KeyError": lambda: of({}),
    "ValueError": lambda: of(header(version="x")),
    "OverflowError": lambda: of(header(generation=float("inf"))),
    "AttributeError": lambda: of(header(areas=[])),
    "area counters is missing": lambda: of(
        header(areas={k: v for k, v in header()["areas"].items() if k != "counters"})
    ),
    "area vm is missing": lambda: of(header(areas=header()["areas"] | {"vm": [0, 4096]})),
    "area stats is missing": lambda: of(header(areas=header()["areas"] | {"stats": [1 << 21, 1]})),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_that_is_not_a_record_is_a_state_error(text: str) -> None:
    with pytest.raises(StateError, match=text):
        Record(WRONG[text]())


def test_a_damaged_area_is_a_state_error_and_one_never_written_none() -> None:
    record = Record.create()
    record.save("vm", "x" * 100)
    at, size = header()["areas"]["vm"]
    for start in (at, at + size // 2):
        os.pwrite(record.fd.fileno(), b"\xff" * 64, start)
    with pytest.raises(StateError, match="area vm is damaged"):
        record.load("vm")
    assert record.load("stats") is None


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 2000, b"1" * 5000])
def test_an_area_that_is_not_json(data: bytes) -> None:
    record = Record.create()
    record._areas["connection"].save(data)
    with pytest.raises(StateError, match="not JSON"):
        record.load("connection")


def test_a_document_that_does_not_fit_changes_nothing() -> None:
    record = Record.create()
    record.save("stats", [1])
    with pytest.raises(ValueError, match="do not fit"):
        record.save("stats", "x" * PAGE)
    assert again(record).load("stats") == [1]


def test_a_journal_without_room_for_requests_is_missing() -> None:
    places = header()["areas"]
    places["journal"][1] = 4096
    with pytest.raises(StateError, match="area journal is missing"):
        Record(of(header(areas=places)))


def test_the_largest_documents_fit() -> None:
    from protocol.virtio_balloon import Queue
    from vhost_balloon.balloon.device import MAX_PAGES, Balloon
    from vhost_balloon.figures.counters import Counters, counters_document
    from vhost_balloon.figures.refusal import Refusal
    from vhost_balloon.front_end.documents import MAX_ORDER, balloon_json
    from vhost_balloon.session.session import Session

    record, counters, most = Record.create(), Counters(), (1 << 64) - 1
    for queue in Queue:
        counters.requests[queue] = most
        for reason in RingErrorReason:
            counters.ring_errors[queue.value, reason] = most
    for refusal in [value for key, value in vars(Refusal).items() if key.isupper()]:
        counters.refuse(str(refusal), most, most)
    counters.discard_seconds.counts = [most] * len(counters.discard_seconds.counts)
    record.save("counters", counters_document(counters))
    access = SocketOptions(0o777, "\U0001f600" * MAX_GROUP)
    settings = VmSettings(stats_interval=1 / 3, target=most, report_rate=most, access=access)
    document = {"settings": settings_to_json(settings), "paused": False, "stats-interval": 1 / 3}
    record.save("vm", document | {"crashes": {"count": most, "last": 1e300}})
    record.save("arguments", ["\udcff" * 100] * 12)
    session = Session(Balloon(), 0)
    session.balloon.restore(MAX_ORDER, *[MAX_PAGES] * 4)
    record.save_json("balloon", balloon_json(session))
