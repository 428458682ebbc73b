"""The descriptor store: names, messages to the service manager, sweeping."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.support.end_to_end import LogLines
from tests.support.restarting.service_manager import same_file
from vhost_balloon.fds import OwnedFd
from vhost_balloon.service.systemd import Notifier
from vhost_balloon.store.descriptors import (
    CONNECTION,
    DEAF_LIMIT,
    KEEP_LIMIT,
    LOCK,
    PIPE,
    RECORD,
    SHELF,
    Store,
    numbered,
)


class Manager:
    """Stands for the notifier and the service manager behind it."""

    def __init__(self) -> None:
        self.reads = trio.Event()
        self.reads.set()
        self.held: dict[str, OwnedFd] = {}
        self.order: list[str] = []
        self._lock = trio.Lock()

    async def send(self, text: str, fds: Sequence[OwnedFd] = ()) -> bool:
        fields = dict(line.split("=", 1) for line in text.splitlines())
        name = fields["FDNAME"]
        async with self._lock:  # messages arrive in order
            await trio.lowlevel.checkpoint()
            await self.reads.wait()
        if "FDSTOREREMOVE" in fields:
            self.order.append(f"-{name}")
            if name in self.held:
                self.held.pop(name).close()
            return True
        (fd,) = fds
        self.order.append(f"+{name}")
        if not any(same_file(fd.fileno(), held.fileno()) for held in self.held.values()):
            assert name not in self.held
            self.held[name] = OwnedFd(os.dup(fd.fileno()))
        return True

    def left(self) -> list[tuple[str, OwnedFd]]:
        """The descriptors that the next process inherits."""
        return [(name, OwnedFd(os.dup(fd.fileno()))) for name, fd in self.held.items()]


def store_of(manager: Manager, *, inherits: bool = False) -> Store:
    return Store(cast(Notifier, manager), 16, manager.left() if inherits else ())


@pytest.fixture
def manager() -> Manager:
    return Manager()


def eventfd(count: int = 0) -> OwnedFd:
    return OwnedFd(os.eventfd(count))


# Keeping


@pytest.mark.parametrize("limit", [0, 16])
async def test_without_a_service_manager_descriptors_are_kept_for_this_program_only(
    limit: int,
) -> None:
    store, fd = Store(limit=limit), eventfd()
    assert not store.active
    await store.keep(LOCK, fd)
    assert store.kept == {LOCK: fd}
    await store.remove(LOCK)
    assert (store.kept, fd.closed) == ({}, False)


async def test_a_service_manager_without_a_store_is_told_nothing(manager: Manager) -> None:
    store = Store(cast(Notifier, manager), 0)
    assert not store.active
    await store.keep(LOCK, eventfd())
    await store.remove(LOCK)
    assert manager.order == []


async def test_a_descriptor_is_stored_by_name_until_it_is_removed(manager: Manager) -> None:
    store, lock, pipe = store_of(manager), eventfd(), eventfd()
    await store.keep(LOCK, lock)
    await store.keep(PIPE, pipe)
    assert same_file(manager.held[LOCK].fileno(), lock.fileno())
    await store.remove(LOCK)
    assert list(manager.held) == [PIPE]
    assert store.kept == {PIPE: pipe}
    assert not lock.closed, "its user owns it"
    pipe.close()
    assert store.kept == {}, "a closed descriptor is not handed over"
    assert manager.order == ["+.lock", "+.pipe", "-.lock"]


async def test_a_foreign_descriptor_is_handed_over_and_never_stored(manager: Manager) -> None:
    store, fd = store_of(manager), eventfd()
    await store.keep(f"{CONNECTION}1", fd, is_ours=False)
    assert (manager.order, store.kept) == ([], {f"{CONNECTION}1": fd})


# The next process


async def test_descriptors_that_were_left_are_taken_and_the_rest_is_swept(
    manager: Manager, log_lines: LogLines
) -> None:
    before, fds = store_of(manager), {}
    for name in (LOCK, PIPE, f"{RECORD}3", f"{RECORD}4"):
        fds[name] = eventfd()
        await before.keep(name, fds[name])
    store = store_of(manager, inherits=True)
    assert store.left() == list(fds)
    assert store.left(RECORD) == [f"{RECORD}3", f"{RECORD}4"]
    assert same_file(store.look(PIPE).fileno(), fds[PIPE].fileno())
    assert PIPE in store.left(), "look() does not take it"
    found = store.take(PIPE)
    assert found is not None
    assert same_file(found.fileno(), fds[PIPE].fileno())
    assert store.take(PIPE) is None
    assert store.take(".nothing") is None
    assert store.kept == {PIPE: found}
    left = [store.look(name) for name in store.left()]
    await store.sweep()
    assert list(manager.held) == [PIPE]
    assert all(fd.closed for fd in left)
    assert len(log_lines.having("which is no longer needed")) == 3
    assert store.left() == []


async def test_a_descriptor_that_was_left_can_be_removed_without_being_taken(
    manager: Manager,
) -> None:
    await store_of(manager).keep(f"{RECORD}1", eventfd())
    store = store_of(manager, inherits=True)
    fd = store.look(f"{RECORD}1")
    await store.remove(f"{RECORD}1")
    assert fd.closed
    assert manager.held == {}


async def test_a_new_number_was_never_used_before(manager: Manager) -> None:
    before = store_of(manager)
    assert [before.new_number(RECORD) for _ in range(3)] == [1, 2, 3]
    assert before.new_number(CONNECTION) == 1, "each prefix has its own numbers"
    for name in (f"{RECORD}7", f"{RECORD}5", f"{SHELF}2-a-in", f"{SHELF}4-b-out"):
        await before.keep(name, eventfd())
    store = store_of(manager, inherits=True)
    for name in store.left():
        await store.remove(name)
    assert [store.new_number(RECORD) for _ in range(2)] == [8, 9]
    assert store.new_number(SHELF) == 5
    assert store.new_number(CONNECTION) == 1


NAMES = [".record-1", ".record-20", ".record-3-a-in", ".record-", ".record-x", ".record-٣", ".r-4"]


def test_numbers_are_read_from_names() -> None:
    assert numbered(RECORD, NAMES) == [1, 3, 20]
    assert numbered(RECORD, []) == []


@given(st.lists(st.text(max_size=8)), st.lists(st.integers(0, 1 << 70)))
def test_any_names_have_numbers_or_none(texts: list[str], numbers: list[int]) -> None:
    names = [f"{RECORD}{text}" for text in (*texts, *numbers)]
    found = numbered(RECORD, names)
    assert found == sorted(found)
    assert set(numbers) <= set(found)


# A service manager that does not read


async def test_a_service_manager_that_does_not_read_delays_little(
    manager: Manager, autojump_clock: trio.testing.MockClock, log_lines: LogLines
) -> None:
    store, began = store_of(manager), trio.current_time()
    manager.reads = trio.Event()
    fds = {f"{RECORD}{number}": eventfd() for number in range(20)}
    for name, fd in fds.items():
        await store.keep(name, fd)
        assert not fd.closed
    assert trio.current_time() - began == pytest.approx(KEEP_LIMIT + 19 * DEAF_LIMIT)
    await store.remove(f"{RECORD}0")
    assert len(log_lines.having("warning: the service manager does not read")) == 1
    assert len(store.kept) == 19, "an upgrade in place still hands it over"
    manager.reads.set()
    for name, fd in fds.items():
        await store.keep(name, fd)
    assert list(manager.held) == list(fds)
    manager.reads = trio.Event()
    began = trio.current_time()
    await store.keep(LOCK, eventfd())
    assert trio.current_time() - began == pytest.approx(KEEP_LIMIT), (
        "the full limit again, after it has read"
    )
    assert len(log_lines.having("warning: the service manager does not read")) == 2
