"""The descriptor store: names, identity, limits, and when something is removed."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import cast

import pytest
import trio
import trio.testing

from tests.end_to_end import LogLines
from tests.helpers import PAGE, memfd
from tests.service_manager import same_file
from vhost_balloon.errors import FrontEndError, StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.store import (
    DEAF_LIMIT,
    KEEP_LIMIT,
    PIPE_PREFIX,
    RECORD_PREFIX,
    Scope,
    Store,
    StoredFd,
    name_of,
)
from vhost_balloon.systemd import Notifier

ENVIRONMENT_STRING = 128 << 10
"""MAX_ARG_STRLEN: the longest string that execve() takes."""


class Manager:
    """Stands for the notifier, and for the service manager behind it."""

    def __init__(self) -> None:
        self.reads = trio.Event()
        self.reads.set()
        self.held: dict[str, OwnedFd] = {}
        self.order: list[str] = []
        self._lock = trio.Lock()

    async def send(self, text: str, fds: Sequence[OwnedFd] = ()) -> bool:
        fields = dict(line.split("=", 1) for line in text.splitlines())
        name = fields["FDNAME"]
        async with self._lock:  # messages arrive in the order sent
            await trio.lowlevel.checkpoint()
            await self.reads.wait()
        if "FDSTOREREMOVE" in fields:
            self.held.pop(name).close()
            self.order.append(f"-{name}")
            return True
        (fd,) = fds
        assert name not in self.held
        if not any(same_file(fd.fileno(), held.fileno()) for held in self.held.values()):
            self.held[name] = OwnedFd(os.dup(fd.fileno()))
            self.order.append(f"+{name}")
        return True

    def left(self) -> list[tuple[str, OwnedFd]]:
        """What the next process inherits."""
        return [(name, OwnedFd(os.dup(fd.fileno()))) for name, fd in self.held.items()]


def store_of(manager: Manager, limit: int = 100, *, inherits: bool = False) -> Store:
    return Store(cast(Notifier, manager), limit, manager.left() if inherits else ())


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
async def store(manager: Manager, nursery: trio.Nursery) -> Store:
    store = store_of(manager)
    nursery.start_soon(store.run)
    return store


def eventfd() -> OwnedFd:
    return OwnedFd(os.eventfd(0))


def again(fd: OwnedFd) -> OwnedFd:
    return OwnedFd(os.dup(fd.fileno()))


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


# Keeping


async def test_without_a_service_manager_nothing_is_stored() -> None:
    store, fd = Store(), eventfd()
    assert not store.active
    assert await Scope(store).keep(fd) is fd
    assert name_of(fd) is None


async def test_one_open_file_has_one_name(store: Store, manager: Manager) -> None:
    scope, fd, other = Scope(store), eventfd(), eventfd()
    copy = again(fd)
    first, second, third = [await scope.keep(each) for each in (fd, copy, other)]
    assert name_of(first) == name_of(second) != name_of(third)
    assert len(manager.held) == store.held == 2
    first.close()
    scope.flush()
    await settled()
    assert len(manager.held) == 2, "it is used once more"
    second.close()
    scope.flush()
    await settled()
    assert list(manager.held) == [name_of(third)]


async def test_what_is_one_file(store: Store) -> None:
    """All eventfds share an inode; two open files of one regular file serve alike."""
    scope, memory = Scope(store), memfd(PAGE)
    opened_anew = OwnedFd(os.open(f"/proc/self/fd/{memory.fileno()}", os.O_RDWR))
    ours, theirs = (OwnedFd(sock.detach()) for sock in socket.socketpair())
    same = [await scope.keep(each) for each in (again(memory), opened_anew)]
    assert name_of(same[0]) == name_of(same[1])
    different = [await scope.keep(each) for each in (eventfd(), eventfd(), ours, theirs, memory)]
    assert len({name_of(each) for each in different}) == 5


async def test_two_who_bring_one_file_at_once(store: Store, manager: Manager) -> None:
    fd, names = eventfd(), set()
    copies = [again(fd), again(fd)]

    async def keep(copy: OwnedFd) -> None:
        kept.append(await Scope(store).keep(copy))
        names.add(name_of(kept[-1]))

    kept: list[OwnedFd] = []
    async with trio.open_nursery() as nursery:
        for copy in copies:
            nursery.start_soon(keep, copy)
    assert names == set(manager.held)
    assert len(names) == 1


async def test_a_full_store_leaves_the_descriptor_to_the_caller(manager: Manager) -> None:
    store = store_of(manager, limit=1)
    scope, fd = Scope(store), eventfd()
    kept = await scope.keep(eventfd())
    with pytest.raises(FrontEndError, match="full"):
        await scope.keep(fd)
    assert fd.fileno() >= 0
    assert name_of(await scope.keep(again(kept))) == name_of(kept), "it is there already"


async def test_room_for_a_vm_is_its_21_descriptors(manager: Manager) -> None:
    store = store_of(manager, limit=22)
    assert store.room_for_vm(0)
    kept = [await Scope(store).keep(eventfd())]
    assert store.room_for_vm(0)
    kept.append(await Scope(store).keep(eventfd()))
    assert not store.room_for_vm(0)


async def test_names_are_short_for_all_of_them_fit_one_environment_string() -> None:
    class Mute(Manager):
        async def send(self, text: str, fds: Sequence[OwnedFd] = ()) -> bool:
            names.append(text.splitlines()[1].removeprefix("FDNAME="))
            return True

    names: list[str] = []
    store = store_of(Mute(), limit=20_000)
    for number in range(10_500):
        prefix = RECORD_PREFIX if number % 21 == 0 else PIPE_PREFIX if number == 1 else "."
        (await Scope(store).keep(eventfd(), prefix)).close()
        store._names.clear()  # as if all were still open
    assert len(set(names)) == len(names) == 10_500
    assert all(name.startswith(".") for name in names)
    assert len("LISTEN_FDNAMES=" + ":".join(names)) < ENVIRONMENT_STRING


# Removal


async def test_nothing_is_removed_before_the_owner_says_so(store: Store, manager: Manager) -> None:
    scope = Scope(store)
    (await scope.keep(eventfd())).close()
    await settled()
    assert len(manager.held) == 1
    scope.flush()
    await settled()
    assert not manager.held
    assert store.held == 0


async def test_what_is_about_to_be_removed_can_be_kept_again(
    store: Store, manager: Manager
) -> None:
    """QEMU swaps one call eventfd for another and back; the store ignores what it still has."""
    scope, fd = Scope(store), eventfd()
    kept = await scope.keep(again(fd))
    kept.close()
    scope.flush()
    back = await scope.keep(again(fd))
    await settled()
    assert list(manager.held) == [name_of(back)]
    back.close()
    scope.flush()
    await settled()
    newest = await scope.keep(fd)
    assert list(manager.held) == [name_of(newest)]


# The next process


async def test_what_was_left_is_adopted_and_the_rest_swept(
    manager: Manager, nursery: trio.Nursery
) -> None:
    before = store_of(manager)
    record = await Scope(before).keep(memfd(PAGE), RECORD_PREFIX)
    fd, lost = [await Scope(before).keep(eventfd()) for _ in range(2)]
    store = store_of(manager, inherits=True)
    nursery.start_soon(store.run)
    scope = Scope(store)
    assert store.records() == [name_of(record)]
    assert set(store.left()) == {name_of(each) for each in (record, fd, lost)}
    name = name_of(fd)
    assert name is not None
    first, second = scope.adopt(name), scope.adopt(name)
    assert isinstance(first, StoredFd)
    assert same_file(first.fileno(), second.fileno())
    scope.adopt(store.records()[0])
    assert store.sweep() == 1
    await settled()
    assert set(manager.held) == {name_of(record), name}
    first.close()
    scope.flush()
    await settled()
    assert name in manager.held
    second.close()
    scope.flush()
    await settled()
    assert name not in manager.held
    for gone in (name, ".nothing"):
        with pytest.raises(StateError, match="lost"):
            scope.adopt(gone)


async def test_what_was_left_and_comes_again_is_not_swept(
    manager: Manager, nursery: trio.Nursery
) -> None:
    """A process that was killed between storing a descriptor and saying what it is for."""
    fd = eventfd()
    await Scope(store_of(manager)).keep(again(fd))
    store = store_of(manager, inherits=True)
    nursery.start_soon(store.run)
    kept = await Scope(store).keep(fd)
    assert store.sweep() == 0
    await settled()
    assert list(manager.held) == [name_of(kept)]


async def test_a_new_name_is_none_that_was_left(manager: Manager) -> None:
    before = Scope(store_of(manager))
    kept = [await before.keep(eventfd(), prefix) for prefix in (".", ".", RECORD_PREFIX, ".w")]
    names = {name_of(each) for each in kept}
    store = store_of(manager, inherits=True)
    assert name_of(await Scope(store).keep(eventfd())) not in names
    assert len(manager.held) == 5


async def test_a_service_manager_that_does_not_read_holds_nobody_up_for_long(
    manager: Manager, autojump_clock: trio.testing.MockClock, log_lines: LogLines
) -> None:
    store, began = store_of(manager), trio.current_time()
    scope = Scope(store)
    manager.reads = trio.Event()
    fds = [eventfd() for _ in range(20)]
    for fd in fds:
        assert await store.keep(fd, scope) is fd
        assert not fd.closed
    assert trio.current_time() - began == pytest.approx(KEEP_LIMIT + 19 * DEAF_LIMIT)
    assert len(log_lines.having("warning: the service manager does not read")) == 1
    manager.reads.set()
    for fd in fds:
        assert name_of(await store.keep(fd, scope)) in manager.held
    assert store.held == len(fds)
