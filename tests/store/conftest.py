"""Fixtures of the store's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.shelves import shelves
from vhost_balloon.store.shelf import Shelf


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with shelves() as shelf:
        yield shelf
