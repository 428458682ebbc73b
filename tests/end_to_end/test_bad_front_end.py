"""Bad requests of front ends, end to end: refused, logged and counted; nothing is lost."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from protocol.vhost_user import HEADER, HeaderFlag, Request
from tests.support.end_to_end import (
    MIB,
    PAGE,
    LogLines,
    by_hand,
    guest_mappings,
    is_refused,
    open_fds,
    serving,
    starts_over,
)
from tests.support.hostile.bad_requests import (
    BAD,
    MEMORY_USER,
    REFUSED_BY_REPLY,
    U64,
    Case,
    G,
    R,
    addr,
    config,
    describe,
    descriptors,
    slot,
    state,
)
from vhost_balloon.simulator.connection import Connection, connect_socket
from vhost_balloon.simulator.memory import GuestRam


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As the daemon does at its start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("case", BAD, ids=describe)
@pytest.mark.parametrize("need_reply", [True, False], ids=["ack", "no-ack"])
async def test_a_bad_request_is_refused_and_nothing_is_lost(
    tmp_path: Path,
    still_clock: MockClock,
    log_lines: LogLines,
    case: Case,
    need_reply: bool,
) -> None:
    request, payload, kinds, text = case
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.works(host.vm())
        before, mapped = open_fds(), guest_mappings()
        with descriptors(kinds) as fds:
            await guest.front_end.send(request, payload, fds, need_reply=need_reply)
        expected = REFUSED_BY_REPLY.get(request)
        if request is R.GET_VRING_BASE:
            expected = state(5, 0)
        if request in (R.CHECK_DEVICE_STATE, R.IOTLB_MSG) or (expected is None and need_reply):
            expected = U64(1)
        if expected is not None:
            reply = await guest.front_end.receive_reply()
            assert (reply.request, reply.flags, reply.payload) == (request, 5, expected)
        features = await guest.front_end.get_u64(R.GET_FEATURES)  # no other reply was left
        assert features == guest.front_end.features
        name = request.name if isinstance(request, Request) else f"request {request}"
        assert log_lines.having(f"warning: vm1: refused {name}: ", text)
        assert host.vm().counters.front_end_errors == 1
        assert (open_fds(), guest_mappings()) == (before, mapped)
        await guest.works(host.vm())
        await starts_over(host.vm(), guest)
        assert open_fds() == before


@pytest.mark.parametrize("part", ["descriptors", "available", "used"])
@pytest.mark.parametrize(
    "address",
    [1 << 40, 64 * MIB, 64 * MIB - 16],
    ids=["far outside", "behind the end", "over the end"],
)
async def test_rings_outside_memory_are_refused_at_their_start(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines, part: str, address: int
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        index, ring = 4, next(iter(guest.rings.values()))
        parts = {name: getattr(ring, name) for name in ("descriptors", "available", "used")}
        user = {name: MEMORY_USER + value for name, value in (parts | {part: address}).items()}
        await guest.front_end.set_vring(R.SET_VRING_NUM, index, 64)
        payload = addr(index, user["descriptors"], user["available"], user["used"])
        await guest.front_end.command(R.SET_VRING_ADDR, payload)
        before = open_fds()
        with descriptors(["eventfd"]) as fds:
            assert await is_refused(guest.front_end, R.SET_VRING_KICK, U64(index), *fds)
        assert log_lines.having("vm1: refused SET_VRING_KICK", "outside memory")
        assert open_fds() == before
        await starts_over(host.vm(), guest)


async def test_a_reply_is_no_request(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        flags = 1 | HeaderFlag.REPLY | HeaderFlag.NEED_REPLY
        await guest.front_end.send_raw(HEADER.pack(R.SET_OWNER, flags, 0))
        assert (await guest.front_end.receive_reply()).payload == U64(1)
        assert log_lines.having("vm1: refused SET_OWNER: reply flag")
        await starts_over(host.vm(), guest)


async def test_what_was_not_negotiated_is_refused(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, Connection(await connect_socket(host.path())) as raw:
        gated = (R.GET_QUEUE_NUM, R.GET_MAX_MEM_SLOTS, R.GET_STATUS)
        for request in gated:
            assert await raw.get_u64(request) == 0
        assert await raw.call(R.GET_CONFIG, config(0, 16)) == b""
        for request in (R.SET_CONFIG, R.RESET_DEVICE, R.SET_STATUS, R.ADD_MEM_REG):
            await raw.send(request, bytes(8), need_reply=True)  # REPLY_ACK is not there either
        assert await raw.get_u64(R.GET_FEATURES)
        assert len(log_lines.having("vm1: refused", "not negotiated")) == 8
        assert host.vm().counters.front_end_errors == 8


async def test_509_regions_and_no_more(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines, many_descriptors: None
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        before = open_fds()
        with descriptors(["memfd"]) as fds:
            for number in range(509):
                payload = slot(G + number * PAGE, PAGE, (1 << 46) + number * PAGE, number * PAGE)
                assert await is_refused(guest.front_end, R.ADD_MEM_REG, payload, *fds) == (
                    number == 508  # it already exists
                )
        assert log_lines.having("more than 509 regions")
        assert guest.front_end.memory_slots == 509
        await guest.works(host.vm())
        await guest.front_end.set_mem_table()
        assert open_fds() == before
        await starts_over(host.vm(), guest)


# Sealing


async def test_unsealed_memory_is_a_warning(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    """Whoever cuts it ends the process of its own VM, and no other (test_truncated_memory)."""
    ram = GuestRam.create(64 * MIB, sealed=False)
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        (line,) = log_lines.having("sealed")
        assert line == (
            "warning: vm1: guest memory is not sealed against shrinking: if its file is "
            "truncated, this daemon ends"
        )
        assert host.vm().counters.front_end_errors == 0
        await guest.works(host.vm())


async def test_sealed_memory_is_none(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.works(host.vm())
        assert not log_lines.having("sealed")
