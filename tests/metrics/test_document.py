"""Untrusted snapshots: which parts are kept, and which are refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fakes.host_vms import full_document
from vhost_balloon.metrics.document import MAX_NUMBER, BadDocument, checked
from vhost_balloon.metrics.families import FAMILIES

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 1 << 66)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["done", "operator", "late"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
)


def values(document: Any) -> list[Any]:
    return [family.read(document) for family in FAMILIES]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value, itself included."""
    yield path
    members = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else members:
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], other)
    return changed


PLACES = list(places(full_document()))


def test_no_figure_is_lost() -> None:
    document = full_document()
    assert values(checked(document)) == values(document)
    assert None not in values(document)


def test_every_member_that_a_family_reads_is_known() -> None:
    """A dictionary records the members that are read."""
    asked: set[str] = set()

    class Recorder(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

        def __contains__(self, key: object) -> bool:
            asked.add(str(key))
            return super().__contains__(key)

    values(Recorder(full_document()))
    assert asked == checked(full_document()).keys()


@settings(deadline=None)
@given(JSON)
def test_any_json_is_refused(snapshot: Any) -> None:
    with pytest.raises(BadDocument):
        checked(snapshot)


@settings(deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_any_change_is_refused_or_gives_valid_figures(path: tuple[Any, ...], other: Any) -> None:
    try:
        document = checked(replaced(full_document(), path, other))
    except BadDocument:
        return
    for family, value in zip(FAMILIES, values(document), strict=True):
        if value is None:
            continue
        several = value if isinstance(value, tuple) else (value,)
        assert len(several) == len(family.zeros())
        for number in several:
            assert type(number) in (int, float)
            assert math.isfinite(number)
            assert 0 <= number <= MAX_NUMBER * 10  # buckets are added up


@pytest.mark.parametrize("bad", [-1, -0.5, math.nan, math.inf, 1 << 64, True, "1", None, [], {}])
@pytest.mark.parametrize(
    "path", [path for path in PLACES if path and type(full_document()[path[0]]) in (int, float)]
)
def test_a_number_is_finite_and_not_negative(path: tuple[Any, ...], bad: Any) -> None:
    document = replaced(full_document(), path, bad)
    if path[0] not in checked(full_document()):
        checked(document)  # no metric is made from it
        return
    with pytest.raises(BadDocument, match=f"^'{path[0]}' is not a number from 0 to"):
        checked(document)


@pytest.mark.parametrize("name", sorted(checked(full_document())))
def test_a_missing_member_is_left_out(name: str) -> None:
    document = full_document()
    del document[name]
    if name in ("attached", "state"):
        with pytest.raises(BadDocument, match=f"'{name}' is missing"):
            checked(document)
        return
    kept = checked(document)
    assert name not in kept
    values(kept)


def test_unknown_members_are_dropped() -> None:
    document = full_document() | {"much": [0] * 1000}
    document["refused-bytes"] |= {str(number): number for number in range(1000)}
    kept = checked(document)
    assert "much" not in kept
    assert kept["refused-bytes"] == {"poison": 8192}
