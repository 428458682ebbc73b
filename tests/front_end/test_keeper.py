"""The largest state that a front end can bring about fits its record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from protocol.vhost_user import (
    HEADER_SIZE,
    MAX_MEMORY_REGIONS,
    MAX_PAYLOAD_SIZE,
    MAX_TABLE_REGIONS,
    Request,
)
from protocol.vhost_user_payloads import Region, VringAddress
from protocol.virtio_balloon import NUM_QUEUES, StatTag
from vhost_balloon.balloon.device import MAX_PAGES, Balloon
from vhost_balloon.balloon.hold import Hold
from vhost_balloon.errors import RingError, RingErrorReason
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.documents import MAX_ORDER, balloon_json, inert_document
from vhost_balloon.front_end.inert import InertKeeper
from vhost_balloon.front_end.keeper import Keeper
from vhost_balloon.front_end.partial import Partial
from vhost_balloon.front_end.parts import Parts
from vhost_balloon.memory.region import GuestRegion, MappedRegion, UntouchedRegion
from vhost_balloon.session.inert_session import InertSession
from vhost_balloon.session.requests import REFUSALS
from vhost_balloon.session.session import Ring, Session
from vhost_balloon.store.record import Record
from vhost_balloon.store.shelf import ShelvedFd

MOST = (1 << 64) - 1
NAME = f".connection-{MOST}"
LONGEST_REPLY = max(REFUSALS.values(), key=len)


@pytest.fixture
def record() -> Iterator[Record]:
    record = Record.create()
    yield record
    record.close()


def shelved() -> OwnedFd:
    """A descriptor with the longest name that the shelf gives."""
    return ShelvedFd(-1, f"{MOST}.{MAX_TABLE_REGIONS - 1}", cast(Any, SimpleNamespace(users={})))


def partial() -> Partial:
    """The longest part of a message that is kept."""
    fds = [shelved() for _ in range(MAX_TABLE_REGIONS)]
    data = bytearray(HEADER_SIZE + MAX_PAYLOAD_SIZE)
    return Partial(data, fds, MOST, False, (MAX_PAYLOAD_SIZE, (1 << 32) - 1))


def session() -> Session:
    session = Session(Balloon(), MOST)
    session.features = session.protocol_features = MOST
    session.status = 255
    address = VringAddress(4, 0, MOST, MOST, MOST, MOST)
    session.rings = [Ring(32768, address, 65535, False, False) for _ in range(NUM_QUEUES)]
    session.returned_bases = dict.fromkeys(range(NUM_QUEUES), 65535)
    session.balloon.restore(MAX_ORDER, *[MAX_PAGES] * 4)
    session.balloon.hold = Hold(1e12 / 3)
    session.balloon.stats.update(dict.fromkeys(StatTag, MOST), 1e12, 1e12 / 3)
    session.balloon.stats.actual = MOST
    return session


def ring(index: int) -> SimpleNamespace:
    broken = RingError(max(RingErrorReason, key=lambda reason: len(reason.value)), "")
    queue = SimpleNamespace(lead=65535, base=65535)
    kick = SimpleNamespace(fd=shelved())
    return SimpleNamespace(index=index, virtqueue=queue, broken=broken, kick=kick)


def mapped() -> MappedRegion:
    held = MappedRegion.__new__(MappedRegion)
    held.region, held.fd = Region(MOST, MOST, MOST, MOST), shelved()
    held.guest_start = MOST
    return held


def untouched() -> UntouchedRegion:
    held = UntouchedRegion.__new__(UntouchedRegion)
    held.region = Region(MOST, MOST, MOST, MOST)
    held.guest_start = MOST
    return held


def spare(session: Session) -> Any:
    """Parts of a connection with nothing but a session."""
    transport, rings = SimpleNamespace(partial=None, is_new=False), SimpleNamespace()
    return Parts(
        NAME,
        cast(Any, transport),
        session,
        cast(Any, rings),
        cast(Any, None),
        cast(Any, None),
        False,
    )


def change(session: Session, member: str) -> None:
    """Change one member of the balloon's document."""
    if member == "config-unread":
        session.config_unread = not session.config_unread
        return
    if member == "held-until":
        session.balloon.hold = Hold(session.balloon.hold.until + 1)
        return
    order, *fields = session.balloon.snapshot()
    names = ("num-pages", "actual", "free-page-hint-cmd-id", "poison-val")
    if member == "order":
        order = 4096 if order is None else order + 1
    else:
        fields[names.index(member)] += 1
    session.balloon.restore(order, *fields)


MEMBERS = sorted(json.loads(balloon_json(Session(Balloon(), 0))))


@pytest.mark.parametrize("member", MEMBERS)
def test_each_change_of_the_balloon_is_on_record_before_the_reply(
    record: Record, member: str
) -> None:
    session = Session(Balloon(), 0)
    keeper = Keeper(record, spare(session))
    for _ in range(3):
        change(session, member)
        record.journal.begin(b"request")
        keeper.begin()
        keeper.finish(Request.SET_CONFIG, None)
        assert record.load("balloon") == json.loads(balloon_json(session))


def test_a_request_that_changes_nothing_is_not_encoded(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest would wait for it."""
    keeper = Keeper(record, spare(Session(Balloon(), 0)))
    keeper.finish(Request.SET_CONFIG, None)
    monkeypatch.setattr(record, "save_json", None)
    for request in (Request.GET_CONFIG, Request.SET_CONFIG):
        keeper.begin()
        keeper.finish(request, None)


def test_a_balloon_that_could_not_be_written_is_written_later(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(Balloon(), 0)
    keeper = Keeper(record, spare(session))
    with monkeypatch.context() as patch:
        patch.setattr(record, "save_json", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            keeper.save_balloon()
    keeper.save_balloon()
    assert record.load("balloon") == json.loads(balloon_json(session))


@pytest.mark.parametrize("held", [mapped(), untouched()], ids=["mapped", "untouched"])
@pytest.mark.parametrize("reply", [None, LONGEST_REPLY])
async def test_a_connection(record: Record, reply: bytes | None, held: GuestRegion) -> None:
    indexes = range(NUM_QUEUES)
    eventfds = {index: SimpleNamespace(fd=shelved()) for index in indexes}
    rings = SimpleNamespace(rings=dict(zip(indexes, map(ring, indexes), strict=True)))
    rings.calls = rings.errs = eventfds
    memory = SimpleNamespace(regions=[held] * MAX_MEMORY_REGIONS)
    channel = SimpleNamespace(fd=shelved())
    transport = SimpleNamespace(partial=partial(), is_new=False)
    parts: Any = (NAME, transport, session(), rings, lambda: memory, lambda: channel, False)
    keeper = Keeper(record, Parts(*parts))
    keeper.save_all(record)
    keeper.begin()
    keeper.finish(0, reply)
    assert len(record.load("connection")["regions"]) == MAX_MEMORY_REGIONS


async def test_an_inert_connection(record: Record) -> None:
    answers = InertSession(MOST)
    answers.restore(
        {"status": 255, "config": "ff" * 16, "bases": [[n, 65535] for n in range(NUM_QUEUES)]}
    )
    transport: Any = SimpleNamespace(partial=partial(), is_new=False)
    keeper = InertKeeper(record, NAME, transport, answers, "\U0001f600" * 1_000_000, False)
    keeper.save_all(record)
    keeper.finish(0, LONGEST_REPLY)
    record.save("connection", inert_document("\U0001f600" * 1_000_000, NAME))
