"""Fixtures of the log's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.logs import StandardError, removed_at_the_end


@pytest.fixture
def stderr() -> Iterator[StandardError]:
    """Replaces descriptor 2 as the test asks."""
    with removed_at_the_end(), StandardError() as found:
        yield found
