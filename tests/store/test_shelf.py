"""The shelf: socket pairs in which descriptors outlive a process."""

from __future__ import annotations

import os
import resource
import select
import socket
from contextlib import suppress
from typing import Final

import pytest

from tests.support.shelves import (
    ended,
    mark,
    marked,
    names,
    open_now,
    packets,
    shelves,
    started,
    successor,
)
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.store.shelf import (
    Shelf,
    ShelvedFd,
    shelf_name,
)

NOBODY: Final = 65534


def test_a_name_leads_to_the_same_file_in_the_next_process(shelf: Shelf) -> None:
    first = shelf.put([marked(1), marked(2)])
    second = shelf.put([marked(3)])
    assert names(first + second) == ["1.0", "1.1", "2.0"]
    assert [mark(fd) for fd in first + second] == [1, 2, 3]
    first[0].close()
    next_one = successor(shelf)
    next_one.load()
    assert [mark(next_one.adopt(name)) for name in ("1.1", "2.0")] == [2, 3]
    assert names(next_one.put([marked(4)])) == ["3.0"]
    next_one.close()


def test_a_descriptor_that_is_not_on_the_shelf_is_lost(shelf: Shelf) -> None:
    (fd,) = shelf.put([marked(1)])
    for name in ("1.1", "2.0", "", "1", "x.y", "None"):
        with pytest.raises(StateError, match="lost"):
            shelf.adopt(name)
    fd.close()
    with pytest.raises(StateError, match="lost"):
        shelf.adopt("1.0")


def test_a_descriptor_named_twice_is_adopted_twice(shelf: Shelf) -> None:
    shelf.put([marked(7)])
    next_one = successor(shelf)
    next_one.load()
    first, second = next_one.adopt("1.0"), next_one.adopt("1.0")
    assert first.fileno() != second.fileno()
    first.close()
    assert mark(next_one.adopt("1.0")) == mark(second) == 7
    next_one.close()


def test_descriptors_that_are_not_adopted_are_closed() -> None:
    before = open_now()
    with shelves() as shelf:
        fds = shelf.put([marked(1), marked(2)])
        next_one = successor(shelf)
        used = open_now()
        next_one.load()
        next_one.load()
        assert open_now().total() == used.total() + 2, "descriptors from the first load are closed"
        next_one.sweep()
        assert open_now() == used
        next_one.close()
        for fd in fds:
            fd.close()
    assert open_now() == before


def test_only_descriptors_on_the_shelf_have_names(shelf: Shelf) -> None:
    assert shelf_name(marked(1)) is None
    (fd,) = shelf.put([marked(1)])
    assert isinstance(fd, ShelvedFd)
    fd.close()
    fd.close()
    assert shelf.users == {}


def test_ends_that_are_not_sockets() -> None:
    before = open_now()
    with shelves() as shelf, pytest.raises(OSError, match="socket"):
        Shelf([*(OwnedFd(os.dup(end.fileno())) for end in shelf.ends[:3]), marked(1)])
    assert open_now() == before


def test_eventfds_come_back_with_their_counts(shelf: Shelf) -> None:
    counts = [0, 1, 7, (1 << 64) - 2]
    fds = shelf.put([OwnedFd(os.eventfd(0, os.EFD_NONBLOCK)) for _ in counts])
    semaphore = shelf.put([OwnedFd(os.eventfd(5, os.EFD_NONBLOCK | os.EFD_SEMAPHORE))])
    for fd, count in zip(fds, counts, strict=True):
        if count:
            os.eventfd_write(fd.fileno(), count)
    found = names(fds + semaphore)
    next_one = successor(shelf)
    for fd in fds + semaphore:
        fd.close()
    next_one.load()
    *plain, last = (next_one.adopt(name) for name in found)
    for fd, count in zip(plain, counts, strict=True):
        if count:
            assert os.eventfd_read(fd.fileno()) == count
        else:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fd.fileno())
    assert [os.eventfd_read(last.fileno()) for _ in range(5)] == [1] * 5
    with pytest.raises(BlockingIOError):
        os.eventfd_read(last.fileno())
    next_one.close()


def test_the_peek_offset_of_a_dead_reader_is_ignored(shelf: Shelf) -> None:
    for number in range(1, 6):
        shelf.put([marked(number)])
    reader = successor(shelf)
    looking = reader._pairs[0].look()
    for _ in range(3):  # dies half-way: the socket keeps the offset
        next(looking)
    next_one = successor(shelf)
    next_one.load()
    assert [mark(next_one.adopt(f"{number}.0")) for number in range(1, 6)] == [1, 2, 3, 4, 5]
    next_one.close()
    reader.close()


def test_an_epoll_descriptor_with_20000_entries(shelf: Shelf) -> None:
    """The most files that a front end can pass in one descriptor; the shelf looks into none."""
    files = [OwnedFd(os.eventfd(0)) for _ in range(40)]
    with select.epoll() as epoll:
        for file in files:  # each entry is a file and a number
            copies = [OwnedFd(os.dup(file.fileno())) for _ in range(500)]
            for copy in copies:
                epoll.register(copy.fileno(), select.EPOLLIN)
            del copies
        (fd,) = shelf.put([OwnedFd(os.dup(epoll.fileno()))])
    next_one = successor(shelf)
    fd.close()
    next_one.load()
    assert "eventpoll" in os.readlink(f"/proc/self/fd/{next_one.adopt('1.0').fileno()}")
    next_one.close()


# Limits


def test_descriptors_that_do_not_fit_are_an_error_and_nothing_is_taken_over(shelf: Shelf) -> None:
    shelf.put([marked(number) for number in range(1, 7)])
    shelf.put([marked(7)])
    next_one = successor(shelf)
    used = open_now()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, hard))
    spare: list[int] = []
    try:
        with suppress(OSError):
            while True:
                spare.append(os.dup(0))
        for _ in range(3):
            os.close(spare.pop())
        with pytest.raises(OSError, match="Too many open files"):
            next_one.load()
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_now() == used
    next_one.load()
    assert mark(next_one.adopt("2.0")) == 7
    next_one.close()


@pytest.mark.skipif(os.getuid() != 0, reason="another user's limit: needs root")
def test_too_many_descriptors_in_flight() -> None:
    """The kernel counts descriptors in flight per user; root is exempt."""

    def run() -> None:
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 50
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        os.setresuid(NOBODY, NOBODY, NOBODY)
        shelf, elsewhere, fds = Shelf.create(), socket.socketpair(), [marked(2)]
        (kept,) = shelf.put([marked(1)])
        sent = 0
        with suppress(OSError):
            while True:
                socket.send_fds(elsewhere[0], [b"x"], [kept.fileno()] * 253)
                sent += 1
        with pytest.raises(OSError, match="Too many references"):
            shelf.put(fds)
        assert not fds[0].closed
        assert packets(shelf, 1) == [], "its descriptors would count as well"
        next_one = successor(shelf)
        next_one.load()
        assert mark(next_one.adopt("1.0")) == 1
        for _ in range(sent):
            elsewhere[1].recv(100)
        assert names(shelf.put(fds)) == ["2.0"]

    assert ended(started(run)) == 0
