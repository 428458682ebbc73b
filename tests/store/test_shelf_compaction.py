"""Compaction of the shelf, and a shelf that is full."""

from __future__ import annotations

import errno
import os

import pytest

from tests.support.shelves import mark, marked, names, packets, shelves, successor
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.store.shelf import SPARE_PACKETS, Shelf, _Pair


def test_unused_descriptors_are_dropped_and_used_ones_stay(shelf: Shelf) -> None:
    kept = shelf.put([marked(1), marked(2), marked(3)])
    kept[1].close()
    switched: list[int] = []
    shelf.switched = lambda: switched.append(shelf.in_use)
    for number in range(1000):
        (fd,) = shelf.put([marked(number)])
        fd.close()
        assert shelf._pairs[shelf.in_use].packets <= 2 * 3 + SPARE_PACKETS + 1
    assert len(switched) > 10
    assert set(switched) == {0, 1}
    assert packets(shelf, 1 - shelf.in_use) == []
    next_one = successor(shelf)
    next_one.load()
    assert (mark(next_one.adopt("1.0")), mark(next_one.adopt("1.2"))) == (1, 3)
    with pytest.raises(StateError):
        next_one.adopt("1.1")
    assert names(next_one.put([marked(1)])) == ["1002.0"]
    next_one.close()


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_a_number_is_never_used_again(restarts: int) -> None:
    """Also if its packet was dropped with unused ones."""
    with shelves() as shelf:
        for _ in range(SPARE_PACKETS + 1):
            shelf.put([marked(1)])[0].close()
        last = SPARE_PACKETS + 1
        shelf._compact()
        processes = [shelf]
        for _ in range(restarts):
            processes.append(successor(processes[-1]))
            processes[-1].load()
            processes[-1].sweep()
        assert names(processes[-1].put([marked(1)])) == [f"{last + 1}.0"]
        for process in processes:
            process.close()


def test_numbers_of_both_pairs_count(shelf: Shelf) -> None:
    shelf.put([marked(1)])
    shelf._pairs[1].send(9, 1, [shelf.ends[0].fileno()])
    next_one = successor(shelf)
    next_one.load()
    assert names(next_one.put([marked(2)])) == ["10.0"]
    next_one.close()


def test_a_kick_that_is_replaced_3000_times_and_the_memory_beside_it() -> None:
    """Restarts now and then; each previous process still has the shelf open."""
    with shelves() as first:
        shelf, memory_name, count = first, names(first.put([marked(4096)]))[0], 0
        (kick,) = first.put([marked(1)])
        for number in range(2, 3002):
            (fresh,) = shelf.put([marked(number)])
            kick.close()
            kick = fresh
            if number % 250 == 0:
                name, before = names([kick])[0], shelf
                shelf = successor(before)
                shelf.load()
                kick = shelf.adopt(name)
                assert mark(kick) == number
                assert mark(shelf.adopt(memory_name)) == 4096
                shelf.sweep()
                before.close()
                count += 1
        assert count == 12
        assert mark(kick) == 3001
        shelf.close()


def fill(shelf: Shelf) -> list[OwnedFd]:
    """Put single descriptors on the shelf until it is full."""
    found: list[OwnedFd] = []
    extra = marked(1)
    while True:
        fd = OwnedFd(os.dup(extra.fileno()))
        try:
            found += shelf.put([fd])
        except BlockingIOError:
            assert not fd.closed, "the caller still owns it"
            return found


def test_a_shelf_that_is_full_refuses_and_forgets_nothing() -> None:
    with shelves(20_000) as shelf:
        fds = fill(shelf)
        assert len(fds) > 10
        next_one = successor(shelf)
        next_one.load()
        assert [mark(next_one.adopt(name)) for name in names(fds)] == [1] * len(fds)
        next_one.close()
        fds.pop().close()
        fds.pop().close()
        (fd,) = shelf.put([marked(5)])
        next_one = successor(shelf)
        next_one.load()
        assert mark(next_one.adopt(names([fd])[0])) == 5
        next_one.close()


def test_all_memory_slots_and_rings_fit() -> None:
    """The buffer size that a host allows by default (net.core.wmem_max)."""
    with shelves(212_992) as shelf:
        fds = [fd for _ in range(509 + 15) for fd in shelf.put([marked(1)])]
        shelf._compact()
        assert len(fds) == len(shelf.users) == 524


def test_a_failed_compaction_does_not_stop_a_message_that_fits(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = shelf.put([marked(1)])
    for _ in range(SPARE_PACKETS + 2):
        shelf.put([marked(1)])[0].close()
    send = _Pair.send

    def short(pair: _Pair, number: int, bits: int = 0, fds: tuple[int, ...] = ()) -> None:
        if pair is shelf._pairs[1] and bits:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        send(pair, number, bits, fds)

    monkeypatch.setattr(_Pair, "send", short)
    (fd,) = shelf.put([marked(2)])
    assert shelf.in_use == 0
    assert packets(shelf, 1) == [], "its descriptors would count as in flight"
    next_one = successor(shelf)
    next_one.load()
    assert [mark(next_one.adopt(name)) for name in names([*kept, fd])] == [1, 2]
    next_one.close()
