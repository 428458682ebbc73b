"""A VM that would pass a limit is refused before its handshake, also beside others that begin."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vhost_balloon.store import DESCRIPTORS_PER_VM, SPARE, Store
from vhost_balloon.systemd import Notifier


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Notifier]:
    """A service manager that listens to nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
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
