"""State survives a round trip through documents; nothing of a wrong document is used."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.vhost_user_payloads import VringAddress
from protocol.virtio_balloon import NUM_QUEUES, Queue, StatTag
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.balloon.guest_stats import GuestStats, restore_stats, stats_document
from vhost_balloon.balloon.hold import FREE, Hold
from vhost_balloon.errors import RingErrorReason, StateError
from vhost_balloon.figures.counters import Counters, counters_document, restore_counters
from vhost_balloon.front_end import documents as state
from vhost_balloon.session.session import Ring, Session

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
ADDRESSES = st.builds(VringAddress, U32, st.just(0), U64, U64, U64, U64)
RINGS = st.builds(Ring, st.integers(1, 32768), ADDRESSES, U16, st.booleans(), st.booleans())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["rings", "offered", "values", "totals"]), inner)
    ),
    max_leaves=8,
)


def through_json(document: Any) -> Any:
    return json.loads(json.dumps(document))


def balloon_document(session: Session) -> Any:
    return json.loads(state.balloon_json(session))


def new_session() -> Session:
    return Session(Balloon(), 0)


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    session = new_session()
    session.offered, session.protocol_features = draw(U64), draw(U64)
    session.features = session.balloon.features = draw(U64)
    session.status = draw(st.integers(0, 255))
    session.rings = draw(st.lists(RINGS, min_size=NUM_QUEUES, max_size=NUM_QUEUES))
    session.returned_bases = draw(st.dictionaries(st.integers(0, NUM_QUEUES - 1), U16))
    session.balloon.hold = Hold(draw(st.floats(0, 1e9) | st.just(math.inf)))
    wish = draw(st.none() | st.integers(1, 1 << 64))
    session.balloon.restore(wish, *draw(st.tuples(U32, U32, U32, U32)))
    session.config_unread = draw(st.booleans())
    return session


def seen(session: Session) -> Any:
    document = state.session_document(session), balloon_document(session)
    balloon = session.balloon
    return deepcopy((document, balloon.features, balloon.hold, session.rings))


@given(sessions())
def test_a_session_and_back(session: Session) -> None:
    other = new_session()
    state.restore_session(other, through_json(state.session_document(session)))
    state.restore_balloon(other, balloon_document(session))
    assert seen(other) == seen(session)


def test_documents_of_earlier_versions_know_of_no_hold_and_no_actual_of_a_sample() -> None:
    session, stats = new_session(), GuestStats()
    session.balloon.hold = Hold(5.0)
    document = balloon_document(session)
    del document["held-until"]
    state.restore_balloon(session, document)
    assert session.balloon.hold == FREE
    stats.update({StatTag.MEMFREE: 1}, 1.0, 2.0)
    document = stats_document(stats)
    del document["actual"]
    stats.actual = 5
    restore_stats(stats, document)
    assert stats == GuestStats({StatTag.MEMFREE: 1}, 1, 2.0, None)


@given(
    st.dictionaries(st.sampled_from(StatTag), st.integers(0, (1 << 63) - 1)),
    st.floats(0, 1e9),
    st.none() | U64,
)
def test_statistics_and_back(values: dict[StatTag, int], taken: float, actual: int | None) -> None:
    stats, other = GuestStats(), GuestStats()
    stats.update(values, 1.7e9, taken)
    stats.actual = actual
    restore_stats(other, through_json(stats_document(stats)))
    assert other == stats, "exactly: the policy tells samples apart by their time"


@given(st.data())
def test_counters_and_back(data: st.DataObject) -> None:
    counters, other = Counters(), Counters()
    counters.freed_bytes, counters.config_changes = data.draw(U64), data.draw(U64)
    counters.refused_bytes.update(data.draw(st.dictionaries(st.text(max_size=9), U64)))
    counters.requests.update(data.draw(st.dictionaries(st.sampled_from(Queue), U64)))
    keys = st.tuples(st.sampled_from(["ring", "inflate"]), st.sampled_from(RingErrorReason))
    counters.ring_errors.update(data.draw(st.dictionaries(keys, U64)))
    for seconds in data.draw(st.lists(st.floats(0, 2), max_size=5)):
        counters.discard_seconds.observe(seconds)
    restore_counters(other, through_json(counters_document(counters)))
    assert other == counters


def test_a_histogram_with_other_buckets_starts_anew() -> None:
    counters = Counters()
    document = counters_document(counters) | {"discard-seconds": {"counts": [1, 2], "sum": 3.0}}
    restore_counters(counters, document)
    assert counters == Counters()


@st.composite
def spoilt(draw: st.DrawFn, document: Any) -> Any:
    """A document with another value in one place."""
    document = through_json(document)
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    places = list(document) if isinstance(document, dict) else list(range(len(document)))
    place = draw(st.sampled_from(places))
    document[place] = draw(spoilt(document[place]))
    return document


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_wrong_document_is_a_state_error_and_nothing_is_taken_over(data: st.DataObject) -> None:
    session, stats, counters = data.draw(sessions()), GuestStats(), Counters()
    document = data.draw(spoilt(state.session_document(session)))
    target = new_session()
    before = seen(target)
    try:
        state.restore_session(target, document)
    except StateError:
        assert seen(target) == before
    else:
        assert state.session_document(target)["rings"] == document["rings"]
    try:
        state.restore_balloon(target, data.draw(spoilt(balloon_document(session))))
    except StateError:
        assert balloon_document(target) == balloon_document(new_session())
    try:
        restore_stats(stats, data.draw(spoilt(stats_document(stats))))
    except StateError:
        assert stats == GuestStats()
    else:
        assert (stats.age(0.0) or 0.0) < float("inf")
    try:
        restore_counters(counters, data.draw(spoilt(counters_document(counters))))
    except StateError:
        assert counters == Counters()
