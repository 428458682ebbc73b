"""Handles requests that change the memory table. Pure.

requests.py says how handlers work.
"""

from __future__ import annotations

from protocol.vhost_user import MAX_MEMORY_REGIONS
from protocol.vhost_user_payloads import parse_memory_table, parse_single_region
from vhost_balloon.errors import FrontEndError
from vhost_balloon.session.effects import AddRegion, RemoveRegion, ReplaceRegions, Steps
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import Session


def set_mem_table(session: Session, message: Message) -> Steps:
    regions = parse_memory_table(message.payload)
    fds = message.expect_fds(len(regions))
    files = yield ReplaceRegions(list(zip(regions, fds, strict=True)))
    message.release_fds()
    session.regions, session.files = regions, files or {}
    yield from session.memory_changed()
    return None


def add_mem_reg(session: Session, message: Message) -> Steps:
    region = parse_single_region(message.payload)
    if len(session.regions) >= MAX_MEMORY_REGIONS:
        raise FrontEndError(f"more than {MAX_MEMORY_REGIONS} regions")
    fds = message.expect_fds(1)
    file = yield AddRegion(region, *fds)
    message.release_fds()
    if file is not None:
        session.files[region.guest_address] = file
    session.regions = [*session.regions, region]
    yield from session.memory_changed()
    return None


def rem_mem_reg(session: Session, message: Message) -> Steps:
    named = parse_single_region(message.payload)
    if len(message.fds) > 1:  # old front ends send one, which is closed unused
        raise FrontEndError(f"{len(message.fds)} descriptors instead of 0")
    for region in session.regions:
        if (region.guest_address, region.user_address, region.size) == (
            named.guest_address,
            named.user_address,
            named.size,
        ):
            break
    else:
        raise FrontEndError("no such region")
    yield RemoveRegion(region)
    session.regions = [other for other in session.regions if other is not region]
    yield from session.memory_changed()
    return None
