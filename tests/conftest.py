"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio.testing

from tests.end_to_end import LogLines
from tests.huge_pages import HugePages
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
    try:
        pool = HugePages(64)
    except OSError as error:
        pytest.skip(f"HUGE PAGES NOT TESTED: {error}")
    yield pool
    pool.close()


@pytest.fixture
def shmem_huge_pages() -> Iterator[None]:
    """Memfds get transparent huge pages; needs root."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    try:
        old = setting.read_text().split("[")[1].split("]")[0]
        setting.write_text("always")
    except OSError as error:
        pytest.skip(f"SHMEM HUGE PAGES NOT TESTED: {error}")
    yield
    setting.write_text(old)
