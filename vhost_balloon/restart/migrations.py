"""Lifts documents that an older version left to this version's formats, step by step. Pure.

Documents come and go by area (store/record.py). An area that was never written is None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vhost_balloon.checked import Document, reading
from vhost_balloon.errors import StateError


def lift(areas: Document, version: int, to: int) -> Document:
    """Lift documents to a later version. Raises StateError where a step is missing."""
    for step in range(version, to):
        if step not in MIGRATIONS:
            raise StateError(f"state of version {version} is no longer supported")
        with reading(f"state of version {step}"):
            areas = MIGRATIONS[step](areas)
    return areas


# From 2 to 3: names in place of positions


def _name_members(areas: Document) -> Document:
    steps: dict[str, Callable[[Any], Document]] = {
        "vm": _name_vm,
        "connection": _name_connection,
        "balloon": _name_balloon,
        "counters": _name_counters,
    }
    return areas | {
        area: step(areas[area]) for area, step in steps.items() if areas[area] is not None
    }


def _named(names: str, values: list[Any]) -> Document:
    return dict(zip(names.split(), values, strict=True))


def _name_vm(document: Document) -> Document:
    return document | {"crashes": _named("count last", document["crashes"])}


def _name_balloon(document: list[Any]) -> Document:
    names = "target num-pages actual free-page-hint-cmd-id poison-val config-unread"
    return _named(names, document)


def _name_connection(document: Document) -> Document:
    if "applied" not in document:
        return document  # nothing is known of it but its socket
    partial = document["partial"]
    if partial is not None and partial["unsure"] is not None:
        partial = partial | {"unsure": _named("size checksum", partial["unsure"])}
    document = document | {
        "partial": partial,
        "applied": _named("sequence reply", document["applied"]),
    }
    if "inert" in document:
        return document
    session = document["session"]
    region = "guest-address size user-address mmap-offset fd"
    return document | {
        "session": session
        | {
            "rings": [_name_ring(ring) for ring in session["rings"]],
            "returned-bases": [_named("ring base", entry) for entry in session["returned-bases"]],
        },
        "regions": [_named(region, entry) for entry in document["regions"]],
        "rings": [_named("index lead base broken kick", entry) for entry in document["rings"]],
        "calls": [_named("ring fd", entry) for entry in document["calls"]],
        "errs": [_named("ring fd", entry) for entry in document["errs"]],
    }


def _name_ring(ring: Document) -> Document:
    names = "index descriptor available used log"
    return ring | {"address": ring["address"] and _named(names, ring["address"])}


def _name_counters(document: Document) -> Document:
    totals = (
        "reported-bytes inflated-bytes deflated-bytes freed-bytes huge-pages-freed "
        "front-end-errors front-end-stalls config-changes"
    )
    refused_bytes, refused_ranges = document["refused"]
    return {
        "totals": _named(totals, document["plain"]),
        "refused": {"bytes": dict(refused_bytes), "ranges": dict(refused_ranges)},
        "requests": _named("inflate deflate stats free-page reporting", document["requests"]),
        "ring-errors": [_named("queue reason count", entry) for entry in document["ring-errors"]],
        "discard-seconds": _named("counts sum", document["discard-seconds"]),
    }


# From 3 to 4: an order that is not due, in place of a target; regions that do not count


def _tell_orders(areas: Document) -> Document:
    connection, balloon, stats = areas["connection"], areas["balloon"], areas["stats"]
    is_served = connection is not None and "regions" in connection
    if balloon is not None:
        target = balloon["target"]
        is_carried_out = is_served and bool(connection["regions"])
        balloon = {"order": None if is_carried_out else target} | balloon
        del balloon["target"]
    if is_served:
        regions = [
            entry | {"left-out": False, "untouched": False} for entry in connection["regions"]
        ]
        connection = connection | {"regions": regions, "judged": False}
    if stats is not None:
        stats = stats | {"guest-total": None}
    return areas | {"connection": connection, "balloon": balloon, "stats": stats}


MIGRATIONS: Final[dict[int, Callable[[Document], Document]]] = {2: _name_members, 3: _tell_orders}
"""By version: lifts all areas' documents to the next version."""
