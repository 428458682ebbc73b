"""Slots and the journal: the old or the new value survives the writer's death."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.vhost_user import HEADER_SIZE, MAX_PAYLOAD_SIZE, MAX_TABLE_REGIONS
from vhost_balloon.session.requests import REFUSALS
from vhost_balloon.store.journal import Journal, Phase
from vhost_balloon.store.slots import Slots

SIZE = 256
HEAD = 32
"""Bytes of an entry's head."""


def dying(before: bytes, write: Callable[[memoryview], object]) -> list[bytes]:
    """A file at each moment of a write: some of the changed bytes, body before head, are written
    already."""
    after = bytearray(before)
    write(memoryview(after))
    changed = [at for at in range(len(before)) if before[at] != after[at]]
    return [
        bytes(after[at] if at in done else before[at] for at in range(len(before)))
        for cut in range(len(changed) + 1)
        for done in (set(changed[:cut]), set(changed[cut:]))
    ]


@given(st.lists(st.binary(max_size=SIZE // 2 - 16), max_size=5), st.binary(max_size=100))
def test_a_writer_that_dies_leaves_before_or_after(values: list[bytes], last: bytes) -> None:
    file = bytearray(SIZE)
    slots = Slots(memoryview(file))
    for value in values:
        slots.save(value)
    before = values[-1] if values else None
    for left in dying(bytes(file), lambda view: Slots(view).save(last)):
        assert Slots(memoryview(bytearray(left))).load() in (before, last)


@given(st.lists(st.binary(max_size=SIZE // 2 - 16), min_size=1, max_size=6))
def test_another_writer_continues(values: list[bytes]) -> None:
    file = bytearray(SIZE)
    for value in values:
        Slots(memoryview(file)).save(value)
        assert Slots(memoryview(file)).load() == value


@given(st.integers(0, SIZE - 1), st.integers(1, 255))
def test_one_damaged_byte_leaves_a_value_that_was_written(at: int, flip: int) -> None:
    file = bytearray(SIZE)
    slots = Slots(memoryview(file))
    for value in (b"a" * 100, b"b" * 100):
        slots.save(value)
    file[at] ^= flip
    assert Slots(memoryview(file)).load() in (b"a" * 100, b"b" * 100)


def test_never_written_and_damaged_are_told_apart() -> None:
    file = bytearray(SIZE)
    assert not Slots(memoryview(file)).written
    Slots(memoryview(file)).save(b"value")
    file[16] ^= 1
    file[SIZE // 2 + 16] ^= 1
    slots = Slots(memoryview(file))
    assert slots.load() is None
    assert slots.written


def test_the_first_value_was_never_written_if_its_writer_died() -> None:
    for left in dying(bytes(SIZE), lambda view: Slots(view).save(b"value")):
        slots = Slots(memoryview(bytearray(left)))
        body_only = not any(left[:8]) and not any(left[SIZE // 2 : SIZE // 2 + 8])
        assert slots.written is not body_only


def test_a_value_that_is_too_long_changes_nothing() -> None:
    slots = Slots(memoryview(bytearray(SIZE)))
    slots.save(b"x" * slots.capacity)
    with pytest.raises(ValueError, match="do not fit"):
        slots.save(b"y" * (slots.capacity + 1))
    assert slots.load() == b"x" * slots.capacity


# The journal


def journal(file: bytearray) -> Journal:
    return Journal(memoryview(file))


def test_each_phase_is_read_back() -> None:
    file = bytearray(SIZE)
    written = journal(file)
    assert journal(file).latest() is None
    written.begin(b"request", ("a", "b"))
    steps: list[tuple[Phase, Callable[[], None]]] = [
        (Phase.SEEN, lambda: None),
        (Phase.TAKEN, written.taken),
        (Phase.DONE, lambda: written.done(b"reply")),
        (Phase.SENDING, written.sending),
        (Phase.DONE, written.unsent),
        (Phase.SENT, written.sent),
    ]
    for phase, step in steps:
        step()
        entry = journal(file).latest()
        assert entry is not None
        assert (entry.phase, entry.request, entry.names) == (phase, b"request", ("a", "b"))
        assert entry.reply == (b"reply" if phase >= Phase.DONE else None)
        assert entry.sequence == journal(file).sequence == 1


def test_another_process_continues_an_entry() -> None:
    file = bytearray(SIZE)
    journal(file).begin(b"request", ("a",))
    journal(file).taken()
    journal(file).done(b"reply")
    entry = journal(file).latest()
    assert entry is not None
    assert (entry.phase, entry.reply) == (Phase.DONE, b"reply")
    journal(file).begin(b"next")
    entry = journal(file).latest()
    assert entry is not None
    assert (entry.sequence, entry.request, entry.names, entry.reply) == (2, b"next", (), None)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_an_entry_that_is_half_written_does_not_count(first: bytes, second: bytes) -> None:
    file = bytearray(SIZE)
    journal(file).begin(first, (".1",))
    journal(file).done(b"old")
    for left in dying(bytes(file), lambda view: Journal(view).begin(second, (".2",))):
        entry = journal(bytearray(left)).latest()
        assert entry is not None
        found = entry.sequence, entry.request, entry.names, entry.reply
        assert found in ((1, first, (".1",), b"old"), (2, second, (".2",), None))


def test_a_half_written_reply_leaves_the_request_to_be_repeated() -> None:
    file = bytearray(SIZE)
    journal(file).begin(b"request")
    journal(file).taken()
    for left in dying(bytes(file), lambda view: Journal(view).done(b"reply")):
        entry = journal(bytearray(left)).latest()
        assert entry is not None
        assert entry.request == b"request"
        if entry.phase is Phase.DONE:
            assert entry.reply in (b"reply", None)
        else:
            assert entry.phase is Phase.TAKEN


@pytest.mark.parametrize("entries", [1, 2])
@pytest.mark.parametrize("names", [(), ("1.0", "2.0")])
def test_an_entry_that_does_not_fit_its_half_changes_nothing(
    entries: int, names: tuple[str, ...]
) -> None:
    """Neither a request nor a reply; the other half is another entry's."""
    file = bytearray(SIZE)
    written = journal(file)
    room = SIZE // 2 - HEAD - len(":".join(names))
    for _ in range(entries):
        written.begin(b"k" * room, names)
    before = bytes(file)
    with pytest.raises(ValueError, match="do not fit"):
        written.begin(b"x" * (room + 1), names)
    with pytest.raises(ValueError, match="do not fit"):
        written.done(b"x")
    assert bytes(file) == before
    assert written.sequence == entries
    written.done(b"")
    entry = journal(file).latest()
    assert entry is not None
    assert (entry.request, entry.names, entry.reply) == (b"k" * room, names, b"")


def test_the_longest_request_leaves_room_for_its_descriptors_and_its_reply() -> None:
    file = bytearray(3 << 16)
    written = journal(file)
    assert written.longest >= HEADER_SIZE + MAX_PAYLOAD_SIZE
    names = tuple(f"{(1 << 64) - 1}.{index}" for index in range(MAX_TABLE_REGIONS))
    for _ in range(2):
        written.begin(b"x" * written.longest, (*names, "lost"))
        written.done(max(REFUSALS.values(), key=len))
    entry = journal(file).latest()
    assert entry is not None
    assert (entry.names, len(entry.reply or b"")) == ((*names, "lost"), 2056)
