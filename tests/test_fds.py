"""Descriptors are closed once; eventfds never block."""

from __future__ import annotations

import errno
import os
import select
import socket

import pytest
import trio
import trio.testing

from vhost_balloon.errors import FrontEndError
from vhost_balloon.fds import EventFd, Kick, OwnedFd

FULL = (1 << 64) - 2
"""An eventfd's largest count: another write blocks."""
MODES = [0, os.EFD_NONBLOCK]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def count(fd: int) -> int:
    """Take the count of an eventfd; 0 if there is none."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return os.eventfd_read(fd) if poll.poll(0) else 0


def pair(flags: int, initial: int = 0) -> tuple[int, EventFd]:
    """Two descriptors of one eventfd: the front end's, which the caller closes, and ours."""
    theirs = os.eventfd(0, flags)
    if initial:
        os.eventfd_write(theirs, initial)
    return theirs, EventFd(OwnedFd(os.dup(theirs)))


def kick_pair(flags: int, initial: int = 0) -> tuple[int, Kick]:
    """The same for a kick."""
    theirs, ours = pair(flags, initial)
    return theirs, Kick(ours.fd)


def test_an_owned_descriptor_is_closed_once_and_never_by_a_reused_number() -> None:
    owned = OwnedFd(os.eventfd(0))
    number = owned.fileno()
    owned.close()
    again = os.eventfd(0)
    assert again == number  # the kernel reuses the lowest number
    owned.close()
    del owned
    assert is_open(again)
    os.close(again)


def test_a_closed_descriptor_has_no_number() -> None:
    owned = OwnedFd(os.eventfd(0))
    owned.close()
    with pytest.raises(ValueError, match="closed"):
        owned.fileno()
    with pytest.raises(ValueError, match="closed"):
        owned.detach()


def test_a_detached_descriptor_is_the_callers() -> None:
    owned = OwnedFd(os.eventfd(0))
    number = owned.detach()
    owned.close()
    assert is_open(number)
    os.close(number)


def test_a_closed_eventfd_lets_go_of_its_descriptor() -> None:
    number = os.eventfd(0)
    ours = EventFd(OwnedFd(number))
    ours.close()
    assert not is_open(number)
    with pytest.raises(ValueError, match="closed"):
        ours.signal()


def test_a_forgotten_descriptor_is_closed() -> None:
    number = os.eventfd(0)
    owned = OwnedFd(number)
    del owned
    assert not is_open(number)


@pytest.mark.parametrize("flags", MODES)
def test_a_signal_adds_one(flags: int) -> None:
    theirs, ours = pair(flags)
    ours.signal()
    ours.signal()
    assert count(theirs) == 2
    ours.close()
    os.close(theirs)


@pytest.mark.parametrize("flags", MODES)
def test_a_full_counter_is_left_as_it_is(flags: int) -> None:
    theirs, ours = pair(flags, FULL)
    ours.signal()
    assert count(theirs) == FULL
    ours.close()
    os.close(theirs)


@pytest.mark.parametrize("flags", MODES)
def test_the_peers_mode_is_left_alone(flags: int) -> None:
    theirs, ours = kick_pair(flags)
    ours.signal()
    ours.take()
    ours.take()
    assert os.get_blocking(theirs) is (flags == 0)
    ours.close()
    os.close(theirs)


async def is_kicked(kick: Kick) -> bool:
    with trio.move_on_after(1):
        await kick.wait()
        return True
    return False


@pytest.mark.parametrize("flags", [*MODES, os.EFD_SEMAPHORE])
@pytest.mark.parametrize("count", [1, 3, FULL - 2])
async def test_a_kick_wakes_the_waiting_task_once_whatever_its_count(
    flags: int, count: int, autojump_clock: trio.testing.MockClock
) -> None:
    theirs, ours = kick_pair(flags)
    assert not await is_kicked(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.wait)
        await trio.testing.wait_all_tasks_blocked()
        os.eventfd_write(theirs, count)
    assert await is_kicked(ours), "a kick lasts until it is taken"
    ours.take()
    assert not await is_kicked(ours)
    os.eventfd_write(theirs, 1)
    os.eventfd_write(theirs, 1)
    assert await is_kicked(ours), "the count was not 0 before"
    ours.take()
    assert not await is_kicked(ours)
    ours.close()
    os.close(theirs)


async def test_an_earlier_kick_is_found(autojump_clock: trio.testing.MockClock) -> None:
    theirs, ours = kick_pair(0, 5)
    assert await is_kicked(ours)
    ours.close()
    os.close(theirs)


def test_a_kick_that_was_taken_keeps_its_count() -> None:
    """The ring's next task may wait for it."""
    theirs, ours = kick_pair(0, 5)
    ours.take()
    assert count(theirs) == 5
    ours.close()
    os.close(theirs)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOMEM, errno.ENOSPC])
def test_a_kick_that_cannot_be_waited_for_is_left_to_the_caller(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise OSError(error, os.strerror(error))

    owned = OwnedFd(os.eventfd(0))
    monkeypatch.setattr("select.epoll", fails)
    with pytest.raises(OSError, match=os.strerror(error)):
        Kick(owned)
    assert not owned.closed
    owned.close()


def test_an_epoll_object_is_not_a_kick_however_many_entries_it_has() -> None:
    eventfds = [os.eventfd(0) for _ in range(200)]
    with select.epoll() as epoll:
        for number in eventfds:
            epoll.register(number, select.EPOLLIN)
        with pytest.raises(FrontEndError, match="not an eventfd"):
            Kick(OwnedFd(os.dup(epoll.fileno())))
    for number in eventfds:
        os.close(number)


def test_anything_but_an_eventfd_is_refused_and_left_to_the_caller() -> None:
    left, right = socket.socketpair()
    reader, writer = os.pipe()
    others = [
        left.detach(),
        right.detach(),
        reader,
        writer,
        os.open("/", os.O_RDONLY),
        os.open("/dev/null", os.O_RDWR),
        os.memfd_create("eventfd"),
    ]
    for number in others:
        owned = OwnedFd(number)
        with pytest.raises(FrontEndError, match="not an eventfd"):
            EventFd(owned)
        assert owned.fileno() == number
        owned.close()
