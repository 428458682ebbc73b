"""Documents of the policy's memory that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest

from vhost_balloon.errors import StateError
from vhost_balloon.policy.memory import VmMemory, from_document, to_document

GOOD = to_document({"web1": VmMemory("qemu", demand=5, peak=7, sampled=1.5)})["web1"]


def test_a_document_is_continued_without_believing_its_samples() -> None:
    memory = from_document({"web1": GOOD | {"current": True}})
    assert memory == {"web1": VmMemory("qemu", demand=5, peak=7, sampled=1.5)}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"web1": None},
        {"web1": {}},
        {"web1": GOOD | {"more": 1}},
        {"web1": GOOD | {"guest": 1}},
        {"web1": GOOD | {"demand": -1}},
        {"web1": GOOD | {"peak": 1.5}},
        {"web1": GOOD | {"distress": 1}},
        {"web1": GOOD | {"sampled": "now"}},
        {"web1": GOOD | {"held_until": float("inf")}},
        {"web1": GOOD | {"faults": True}},
    ],
)
def test_any_other_document_is_refused(document: Any) -> None:
    with pytest.raises(StateError, match="the policy's memory"):
        from_document(document)
