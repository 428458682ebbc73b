"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio.testing

from tests.end_to_end import LogLines
from tests.huge_pages import HugePages, need_root
from tests.rig.fixtures import pytest_terminal_summary, rig  # noqa: F401
from vhost_balloon.log import logger


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
