"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.rig.fixtures import (  # noqa: F401
    pytest_collection_finish,
    pytest_runtest_setup,
    pytest_terminal_summary,
    systemd_host,
)
from tests.support.control_client import Client, MemoryListener, web1
from tests.support.end_to_end import LogLines
from tests.support.fakes.pure_front_end import PureFrontEnd, negotiated
from tests.support.helpers import GIB, MIB, mapped, memfd
from tests.support.huge_pages import HugePages, need_root
from vhost_balloon.control.server import serve_control
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.vm.vm import Vm


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    """What the daemon logs in this process, down to debug."""
    handler, level = LogLines(), logger.level
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def still_clock() -> trio.testing.MockClock:
    """Time that passes only when the test says so: nothing is late, however slow this machine."""
    return trio.testing.MockClock()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """1 MiB at 0 and 1 MiB at 4 GiB, from one file in the opposite order; a hole between."""
    low = memfd(3 * MIB)
    high = OwnedFd(os.dup(low.fileno()))
    memory = GuestMemory()
    memory.add(mapped(high, guest=4 * GIB, offset=0))
    memory.add(mapped(low, guest=0, offset=2 * MIB))
    yield memory
    memory.close()


@pytest.fixture
def front_end() -> PureFrontEnd:
    """A front end without I/O that has negotiated as QEMU does."""
    return negotiated()


@pytest.fixture
def fresh() -> PureFrontEnd:
    """One that has just connected."""
    return PureFrontEnd()


@pytest.fixture
def huge_pages() -> Iterator[HugePages]:
    """A pool of huge pages (2 MiB) for this test alone; needs root."""
    need_root("HUGE PAGES")
    with HugePages(64) as pool:
        yield pool


@pytest.fixture
def shmem_huge_pages() -> Iterator[None]:
    """Memfds get transparent huge pages; needs root."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    need_root("SHMEM HUGE PAGES")
    old = setting.read_text().split("[")[1].split("]")[0]
    setting.write_text("always")
    yield
    setting.write_text(old)


# The control socket


@pytest.fixture
async def vm() -> Vm:
    """web1, with nobody attached."""
    return web1()


@pytest.fixture
async def server(vm: Vm, nursery: trio.Nursery) -> MemoryListener:
    """The control server of vm, over streams in memory."""
    listener = MemoryListener()
    await nursery.start(serve_control, listener, vm)
    return listener


@pytest.fixture
async def client(server: MemoryListener) -> Client:
    """A client in command mode."""
    client = server.connect()
    await client.negotiate()
    return client
