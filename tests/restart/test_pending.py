"""A request that the previous process left unanswered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.vhost_user import HEADER, VERSION, Request
from vhost_balloon.restart.reattach import read_pending
from vhost_balloon.store.journal import Journal, Phase
from vhost_balloon.store.shelf import Shelf

REQUEST = HEADER.pack(Request.GET_STATUS, VERSION, 0)


@pytest.fixture
def journal() -> Journal:
    journal = Journal(memoryview(bytearray(4096)))
    journal.begin(REQUEST)
    journal.taken()
    return journal


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf.create()
    yield shelf
    shelf.close()


@pytest.mark.parametrize(("text", "reply"), [("0f00", b"\x0f\0"), (None, None)])
def test_a_reply_in_the_document_is_copied_to_the_journal_before_it_is_sent(
    journal: Journal, shelf: Shelf, text: str | None, reply: bytes | None
) -> None:
    """The document may be written again, without the reply, before the reply can be sent."""
    pending = read_pending(journal, {"sequence": journal.sequence, "reply": text}, shelf)
    assert pending is not None
    for entry in (pending.entry, journal.latest()):
        assert entry is not None
        assert (entry.phase, entry.reply) == (Phase.DONE, reply)


def test_a_request_that_was_not_applied_is_repeated(journal: Journal, shelf: Shelf) -> None:
    pending = read_pending(journal, {"sequence": journal.sequence - 1, "reply": "ff"}, shelf)
    assert pending is not None
    assert (pending.entry.phase, pending.message.request) == (Phase.TAKEN, Request.GET_STATUS)


@pytest.mark.parametrize("phase", [Phase.SEEN, Phase.TAKEN])
def test_a_payload_that_was_skipped_is_not_taken_for_an_empty_one(
    journal: Journal, shelf: Shelf, phase: Phase
) -> None:
    """Its request would be carried out."""
    journal.begin(HEADER.pack(Request.RESET_DEVICE, VERSION, 1 << 20), ("lost",))
    if phase is Phase.TAKEN:
        journal.taken()
    pending = read_pending(journal, {"sequence": 0, "reply": None}, shelf)
    assert pending is not None
    message = pending.message
    assert (message.oversized, message.fds_lost, message.payload) == (True, True, b"")


def test_an_answered_request_is_not_pending(journal: Journal, shelf: Shelf) -> None:
    journal.sent()
    assert read_pending(journal, {"sequence": journal.sequence, "reply": "ff"}, shelf) is None
