"""Fixtures of all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.rig.fixtures import (  # noqa: F401
    needs_rig,
    pytest_collection_finish,
    pytest_runtest_setup,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
    systemd_host,
)
from tests.support.control_client import Client, MemoryListener, web1
from tests.support.end_to_end import LogLines
from tests.support.fakes.pure_front_end import PureFrontEnd, negotiated
from tests.support.helpers import GIB, MIB, mapped, memfd
from tests.support.huge_pages import HugePages, need_root, shmem_enabled
from vhost_balloon.control.server import serve_control
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.vm.vm import Vm

SLOW = {
    *("benchmarks", "fuzz", "neighbours", "provisioning", "restart", "soak"),
    *("test_inert", "test_shelf_deaths", "test_side_services", "test_socket_paths"),
}
"""Folders and files whose tests take long: most start several processes, or wait for real time."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as slow before -m selects."""
    for item in items:
        if {item.path.parent.name, item.path.stem} & SLOW or needs_rig(item):
            item.add_marker("slow")


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    """The log of this process, from debug up."""
    handler, level = LogLines(), logger.level
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for sockets with long names: their paths may have 107 bytes, which pytest's own
    folders leave no room for when tests run in parallel."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def still_clock() -> trio.testing.MockClock:
    """A clock that only the test moves: nothing is late, however slow the machine."""
    return trio.testing.MockClock()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """1 MiB at 0 and 1 MiB at 4 GiB, in one file in the opposite order with a hole between them."""
    low = memfd(3 * MIB)
    high = OwnedFd(os.dup(low.fileno()))
    memory = GuestMemory()
    memory.add(mapped(high, guest=4 * GIB, offset=0))
    memory.add(mapped(low, guest=0, offset=2 * MIB))
    yield memory
    memory.close()


@pytest.fixture
def front_end() -> PureFrontEnd:
    """A front end without I/O that has negotiated like QEMU."""
    return negotiated()


@pytest.fixture
def fresh() -> PureFrontEnd:
    """A front end without I/O that has only connected."""
    return PureFrontEnd()


@pytest.fixture
def huge_pages() -> Iterator[HugePages]:
    """A pool of 64 huge pages of 2 MiB for this test alone; needs root."""
    need_root("HUGE PAGES")
    with HugePages(64) as pool:
        yield pool


@pytest.fixture
def shmem_huge_pages() -> Iterator[None]:
    """Give memfds transparent huge pages; needs root."""
    need_root("SHMEM HUGE PAGES")
    with shmem_enabled("always"):
        yield


# The control socket


@pytest.fixture
async def vm() -> Vm:
    """A VM named web1 without a front end."""
    return web1()


@pytest.fixture
async def server(vm: Vm, nursery: trio.Nursery) -> MemoryListener:
    """The control server of vm, on in-memory streams."""
    listener = MemoryListener()
    await nursery.start(serve_control, listener, vm)
    return listener


@pytest.fixture
async def client(server: MemoryListener) -> Client:
    """A client in command mode."""
    client = server.connect()
    await client.negotiate()
    return client
