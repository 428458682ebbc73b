"""SIGKILL at every step of an order to disconnect, and restarts of connections without messages."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from protocol.vhost_user import HEADER, VERSION, Request
from protocol.virtio_balloon import Queue
from tests.rig.errors import GuestError, QMPError
from tests.support.end_to_end import BLOCK, MIB, ByHand, by_hand, eventually, fill, is_filled
from tests.support.hostile.bad_requests import descriptors
from tests.support.restarting.crashing import POINTS
from tests.support.restarting.scenario import CRASHING, KEPT, Host, damage, hosting, upgrade
from vhost_balloon.simulator.connection import Connection, connect_socket
from vhost_balloon.simulator.wire import BackEndGone
from vhost_balloon.store.descriptors import SHELF

FROM = {"CRASH_FROM": "conversation.end"}
TABLE = HEADER.pack(Request.SET_MEM_TABLE, VERSION, 264) + bytes(264)
BLOCKED = HEADER.pack(Request.GET_FEATURES, VERSION, 0) * 100_000
GONE = (BackEndGone, BrokenPipeError, ConnectionResetError)


async def order(host: Host) -> None:
    """Order it, however often the daemon dies, until there is nobody to disconnect."""

    def ask() -> None:
        while True:
            try:
                host.ask("vm-disconnect")
            except QMPError:
                return
            except (OSError, GuestError):
                host.manager.wait_ready()

    with trio.fail_after(40):
        await trio.to_thread.run_sync(ask)


async def half_a_message(guest: ByHand) -> None:
    with descriptors(["memfd"] * 5) as fds:
        await guest.front_end.send_raw(TABLE[:50], fds)


async def blocked(guest: ByHand) -> None:
    """A reply is on record and cannot be sent."""
    with trio.move_on_after(1):
        await guest.front_end.send_raw(BLOCKED)


async def nothing(guest: ByHand) -> None:
    await guest.inflate([5000])


STATES = {"served": nothing, "half": half_a_message, "blocked": blocked}


async def ends_cleanly(host: Host, state: str) -> None:
    """Disconnect a front end; check that nothing of it reaches the next one."""
    async with by_hand(host.path()) as guest:
        host.ask("balloon", value=32 * MIB)
        fill(guest.ram, 40 * MIB, BLOCK)
        await STATES[state](guest)
        await order(host)
        with trio.fail_after(20), suppress(*GONE):
            while True:
                await guest.front_end.receive_reply()
        ring = guest.rings[Queue.REPORTING]
        ring.add([(40 * MIB, BLOCK, True)])
        ring.kick()
        async with by_hand(host.path()) as other:  # any reply of the first one's would fail it
            assert host.vm()["target"] == 64 * MIB
            await other.inflate([5000])
            host.manager.kill()
            await other.inflate([5001])
            await other.start(bases=await other.stop())
        assert is_filled(guest.ram, 40 * MIB, BLOCK)
    await eventually(lambda: len(host.manager.names()) == KEPT)
    for text in ("inert", "lost", "Traceback", "internal error"):
        assert text not in host.log()


STEPS = [
    *(f"transport.shut_down:{side}:1" for side in ("before", "after")),
    *(f"journal.sent:{side}:1" for side in ("before", "after")),
    *(f"record.save:{side}:{count}" for side in ("before", "after") for count in (1, 2, 3)),
    *(f"shelf.clear:{side}:1" for side in ("before", "after")),
    *(f"pair.send:{side}:1" for side in ("before", "after")),
    *(f"pair.empty:{side}:{count}" for side in ("before", "after") for count in (1, 2)),
    *(f"store.remove:{side}:1" for side in ("before", "after")),
    # The next front end attaches.
    *(f"store.keep:{side}:1" for side in ("before", "after")),
    *(f"record.save:before:{count}" for count in (4, 5, 6, 7, 8)),
]


@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_a_step(tmp_path: Path, step: str) -> None:
    try:
        async with hosting(tmp_path, crashes=[step], environment=FROM) as host:
            await ends_cleanly(host, "served")
            assert host.manager.restarts == 2
    except* BackEndGone:
        # As in Scenario: a daemon that dies right after it has accepted loses the connection.
        assert step == "store.keep:before:1"


@pytest.mark.parametrize("step", ["", *STEPS[:12:3]])
@pytest.mark.parametrize("state", ["half", "blocked"])
async def test_killed_while_the_front_end_is_stuck(tmp_path: Path, step: str, state: str) -> None:
    async with hosting(tmp_path, crashes=[step] if step else None, environment=FROM) as host:
        await ends_cleanly(host, state)


def test_every_named_step_is_a_point() -> None:
    assert {step.partition(":")[0] for step in STEPS} <= POINTS.keys()


async def test_an_inert_front_end(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        host.manager.stop(signal.SIGKILL)
        damage(host)
        host.manager.start()
        assert host.vm()["state"] == "inert"
        await order(host)
        with trio.fail_after(5), pytest.raises(GONE):
            await guest.front_end.receive_reply()
        async with by_hand(host.path()) as other:
            await other.inflate([5000])
            host.manager.kill()
            await other.inflate([5001])


async def test_the_memory_of_a_guest_that_ended_is_the_hosts_again(tmp_path: Path) -> None:
    """Descriptors in flight would keep it."""
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            fill(guest.ram, 0, 32 * MIB)
            assert in_flight(host) > 0
        await eventually(lambda: in_flight(host) == 0)


def in_flight(host: Host) -> int:
    """How many descriptors lie in the sockets of the shelf."""
    ends = [number for name, number in host.manager.stored if name.startswith(SHELF)]
    texts = [Path(f"/proc/self/fdinfo/{number}").read_text() for number in ends]
    return sum(int(count) for text in texts for count in re.findall(r"scm_fds:\s*(\d+)", text))


# Connections without a message, across restarts


PATIENCE = {"STALL_PATIENCE": "0.5"}


@pytest.mark.parametrize("how", ["killed", "upgraded"])
@pytest.mark.parametrize("said", [b"", TABLE[:5], TABLE[:-1]], ids=["nothing", "5 bytes", "most"])
async def test_one_without_a_message_still_makes_way(tmp_path: Path, how: str, said: bytes) -> None:
    async with (
        hosting(tmp_path, program=CRASHING, environment=PATIENCE) as host,
        Connection(await connect_socket(host.path())) as stray,
    ):
        if said:
            await stray.send_raw(said)
        await eventually(lambda: host.vm()["attached"])
        await restart(host, how)
        await trio.sleep(1)
        assert host.vm()["attached"]
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
        assert "no message came, and another front end waits" in host.log()


async def restart(host: Host, how: str) -> None:
    if how == "killed":
        host.manager.kill()
    else:
        await upgrade(host)


OWNER = HEADER.pack(Request.SET_OWNER, VERSION, 0)


@pytest.mark.parametrize("how", ["killed", "upgraded"])
@pytest.mark.parametrize(
    "said", [OWNER, TABLE[:20] + bytes(256), OWNER + TABLE[:-1]], ids=["one", "refused", "more"]
)
async def test_one_with_a_message_never_makes_way(tmp_path: Path, how: str, said: bytes) -> None:
    """Whether it was heard before the restart, or lies in the socket meanwhile."""
    async with (
        hosting(tmp_path, program=CRASHING, environment=PATIENCE) as host,
        Connection(await connect_socket(host.path())) as front_end,
    ):
        await front_end.send_raw(said)
        await eventually(lambda: host.vm()["attached"])
        for _ in range(2):
            await restart(host, how)
            async with Connection(await connect_socket(host.path())):
                await trio.sleep(1.5)
                assert host.vm()["attached"]
                assert "another front end waits" not in host.log()
