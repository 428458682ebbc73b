"""The descriptor store's bounds: what a VM is promised, and nothing that stays behind."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vhost_balloon.fds import OwnedFd
from vhost_balloon.store import DESCRIPTORS_PER_VM, SPARE, Scope, Store, name_of
from vhost_balloon.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        yield manager


@pytest.fixture
def told(manager: socket.socket) -> Iterator[Notifier]:
    """Our end."""
    with closing(Notifier(manager.getsockname())) as notifier:
        yield notifier


@pytest.mark.parametrize("limit", [1, 10, 500])
def test_vms_that_have_stored_nothing_yet_count_as_whole(limit: int, told: Notifier) -> None:
    store = Store(told, limit * DESCRIPTORS_PER_VM + DESCRIPTORS_PER_VM // 2)
    assert store.room_for_vm(limit - 1)
    assert not store.room_for_vm(limit)


def test_without_a_store_only_open_descriptors_count() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = (soft - SPARE) // DESCRIPTORS_PER_VM
    assert Store().room_for_vm(most - 1)
    assert not Store().room_for_vm(most)


async def test_all_removals_are_sent_before_another_program_takes_over(
    manager: socket.socket, told: Notifier
) -> None:
    store = Store(told, 100)
    scope = Scope(store)
    kept = [await scope.keep(OwnedFd(os.eventfd(0))) for _ in range(3)]
    names = [name_of(fd) for fd in kept]
    for fd in kept:
        fd.close()
    scope.flush()
    await store.settle()
    told_last = [manager.recv(4096).decode() for _ in range(6)][3:]
    assert told_last == [f"FDSTOREREMOVE=1\nFDNAME={name}" for name in names]
    assert store.held == 0
