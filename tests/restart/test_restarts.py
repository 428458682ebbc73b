"""A guest and its front end after the daemon was killed and started again."""

from __future__ import annotations

import signal
import struct
import time
from pathlib import Path

import pytest
import trio

from protocol import vhost_user_payloads as payloads
from protocol.vhost_user import HEADER, VERSION, HeaderFlag, ProtocolFeature, Request
from protocol.virtio_balloon import Queue, StatTag
from tests.rig.errors import QMPError
from tests.support.end_to_end import BLOCK, MIB, PAGE, by_hand, eventually, fill, is_filled
from tests.support.restarting.scenario import CRASHING, GUEST, Host, hosting, upgrade
from vhost_balloon.simulator.connection import Refused
from vhost_balloon.simulator.events import EventFd

NEED_REPLY = VERSION | HeaderFlag.NEED_REPLY


def away(host: Host) -> None:
    """Kill the daemon; start() brings it back."""
    host.manager.stop(signal.SIGKILL)


def freed(host: Host) -> int:
    found: int = host.vm()["freed-bytes"]
    return found


# Messages


@pytest.mark.parametrize("cut", [1, 12, 20])
async def test_a_message_in_parts_is_one_message(tmp_path: Path, cut: int) -> None:
    payload = payloads.build_vring_state(0, 0)
    data = HEADER.pack(Request.SET_VRING_ENABLE, NEED_REPLY, len(payload)) + payload
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.send_raw(data[:cut])
        await guest.rings[Queue.DEFLATE].submit([guest.pfns([1])])  # the part has arrived
        host.manager.kill()
        with trio.fail_after(10):
            await guest.front_end.send_raw(data[cut:])
            reply = await guest.front_end.receive_reply()
        assert (reply.request, reply.payload) == (Request.SET_VRING_ENABLE, bytes(8))
        assert not next(q for q in host.vm()["queues"] if q["index"] == 0)["enabled"]


async def test_descriptors_of_a_message_in_parts_are_kept(tmp_path: Path) -> None:
    data = HEADER.pack(Request.SET_VRING_CALL, VERSION, 8) + bytes(8)
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        call = guest.front_end.ports[0].call = EventFd()
        guest.rings[Queue.INFLATE].call_event = call
        await guest.front_end.send_raw(data[:15], [call.fileno()])
        await guest.rings[Queue.DEFLATE].submit([guest.pfns([1])])  # the part has arrived
        host.manager.kill()
        await guest.front_end.send_raw(data[15:])
        with trio.fail_after(10):
            await guest.inflate([5000])


async def test_a_long_message_in_parts(tmp_path: Path) -> None:
    """Longer than everything else on record."""
    size = 0x10000
    data = HEADER.pack(200, NEED_REPLY, size) + b"\xff" * size
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.send_raw(data[:-1])
        await guest.rings[Queue.DEFLATE].submit([guest.pfns([1])])
        host.manager.kill()
        with trio.fail_after(10):
            await guest.front_end.send_raw(data[-1:])
            assert (await guest.front_end.receive_reply()).payload == payloads.build_u64(1)
            await guest.inflate([5000])
        assert host.manager.restarts == 1


# Rings


async def test_a_broken_ring_stays_broken_and_tells_its_base(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        ring = guest.rings[Queue.INFLATE]
        ring.publish(ring.size + 1)  # no such head
        ring.kick()
        await eventually(lambda: host.vm()["queues"][0]["broken"] == "head")
        host.manager.kill()
        assert host.vm()["queues"][0]["broken"] == "head"
        await guest.report((32 * MIB, BLOCK))
        assert host.vm()["ring-errors"] == {"inflate": {"head": 1}}
        bases = await guest.stop()
        assert bases[0] == 1 != ring.available_index
        guest.fresh()
        await guest.start()
        await guest.inflate([5001])


async def test_a_base_that_is_ahead_of_the_used_index(tmp_path: Path) -> None:
    """A front end may use requests itself, and sets the index to continue from."""
    async with hosting(tmp_path) as host, by_hand(host.path(), features=None) as guest:
        ring = guest.rings[Queue.INFLATE]
        for _ in range(3):
            ring.add([guest.pfns([6000])])
        await guest.start(bases={0: 3})
        await guest.inflate([6001])
        host.manager.kill()
        await guest.inflate([6002])
        assert ring.used_index == 2
        assert (await guest.stop())[0] == 5 == ring.available_index


async def test_every_call_is_signalled_once(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.get_config()  # waits for all earlier messages
        calls = [guest.front_end.ports[index].call for index in guest.indexes.values()]
        for call in calls:
            call.take()
        host.manager.kill()
        assert [call.take() for call in calls] == [1] * len(calls)


async def test_waiting_reports_are_acknowledged_without_being_discarded(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, 32 * MIB, BLOCK)
        await guest.report((48 * MIB, BLOCK))
        away(host)
        ring = guest.rings[Queue.REPORTING]
        ring.add([(32 * MIB, BLOCK, True)])
        ring.kick()
        host.manager.start()
        with trio.fail_after(5):
            await ring.wait_used()
        assert is_filled(guest.ram, 32 * MIB, BLOCK)
        assert host.vm()["refused-bytes"] == {"late": BLOCK}
        await guest.report((32 * MIB, BLOCK))
        assert not guest.ram.resident_in(32 * MIB, BLOCK)


# The model


async def test_statistics_are_kept_and_a_fresh_sample_is_requested(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        ring = guest.rings[Queue.STATS]
        ring.add([guest.stats({int(StatTag.MEMFREE): 5})])
        ring.kick()
        await eventually(lambda: "stats-age" in host.vm())
        before_asked, before, before_told = time.monotonic(), host.vm(), time.monotonic()
        host.manager.kill()
        after_asked, after, after_told = time.monotonic(), host.vm(), time.monotonic()
        assert after["stats"] == before["stats"] == {"stat-free-memory": 5}
        assert after["stats-taken"] == before["stats-taken"]
        assert after["stats-actual"] == before["stats-actual"] == GUEST
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert 0 <= now - after["stats-taken"] - after["stats-age"] < 10
        grown = after["stats-age"] - before["stats-age"]
        assert after_asked - before_told - 0.1 <= grown <= after_told - before_asked + 0.1
        with trio.fail_after(5):
            await ring.wait_used()  # the device asks
        ring.add([guest.stats({int(StatTag.MEMFREE): 6})])
        ring.kick()
        await eventually(lambda: host.vm()["stats"] == {"stat-free-memory": 6})
        assert host.vm()["stats-age"] < after["stats-age"]
        assert host.vm()["stats-taken"] > after["stats-taken"]


@pytest.mark.parametrize("in_place", [False, True])
async def test_a_hold_is_kept_until_its_end(tmp_path: Path, in_place: bool) -> None:
    async def restart() -> None:
        if in_place:
            await upgrade(host)
        else:
            host.manager.kill()

    async with hosting(tmp_path) as host:
        async with by_hand(host.path()):
            host.ask("balloon", value=48 * MIB)
            await restart()
            assert (host.vm()["held"], "held-for" in host.vm()) == (True, False)
            with pytest.raises(QMPError, match="an operator holds"):
                host.ask("balloon", value=MIB, policy=True)
            host.ask("balloon", value=40 * MIB, hold=1000)
            await restart()
            assert host.vm()["held"]
            assert 900 < host.vm()["held-for"] < 1000
            host.ask("policy-hold", seconds=1)
            await restart()
            await eventually(lambda: not host.vm()["held"])
            host.ask("balloon", value=32 * MIB, policy=True)
            assert host.vm()["target"] == 32 * MIB
            host.ask("policy-hold")
            await restart()
            host.ask("policy-release")
            await restart()
            assert not host.vm()["held"]
            host.ask("policy-hold")
        await eventually(lambda: not host.vm()["attached"])
        await restart()
        async with by_hand(host.path()):
            assert not host.vm()["held"], "the next front end's"


async def test_orders_and_counters_are_kept(tmp_path: Path) -> None:
    polling = {"path": "/machine/peripheral/vm1", "property": "guest-stats-polling-interval"}
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        host.ask("balloon", id="vm1", value=48 * MIB)
        host.ask("balloon-pause", id="vm1")
        host.ask("qom-set", value=7, **polling)
        await guest.front_end.set_config(slice(4, 8), (256).to_bytes(4, "little"))
        await guest.inflate(range(5000, 5256))
        before = host.vm()
        assert before["inflated-bytes"] == MIB
        host.manager.kill()
        after = host.vm()
        assert host.ask("qom-get", **polling) == 7
        kept = "target actual reporting-paused guest-memory driver-ready regions inflated-bytes"
        assert all(after[key] == before[key] for key in kept.split())
        assert (after["target"], after["actual"]) == (48 * MIB, GUEST - MIB)
        assert after["reporting-paused"]
        fill(guest.ram, 32 * MIB, BLOCK)
        await guest.report((32 * MIB, BLOCK))
        assert is_filled(guest.ram, 32 * MIB, BLOCK)


async def test_counters_that_were_shown_never_go_back(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        for round in range(3):
            fill(guest.ram, 32 * MIB, BLOCK)
            await guest.report((32 * MIB, BLOCK))
            shown = freed(host)
            assert shown >= BLOCK * (round + 1)
            host.manager.kill()
            assert freed(host) >= shown


@pytest.mark.parametrize("read", [False, True])
async def test_a_config_change_is_sent_again_only_if_it_was_not_read(
    tmp_path: Path, read: bool
) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        host.ask("balloon", id="vm1", value=48 * MIB)
        await eventually(lambda: guest.config_changes == 1)
        if read:
            await guest.front_end.get_config()
        host.manager.kill()
        await eventually(lambda: guest.config_changes == (1 if read else 2))
        assert struct.unpack("<4I", await guest.front_end.get_config())[0] == 16 * MIB // PAGE
        assert guest.config_changes == (1 if read else 2)


async def test_a_request_is_refused_after_a_restart_too(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        assert guest.front_end.protocol_features & ProtocolFeature.REPLY_ACK
        host.manager.kill()
        with pytest.raises(Refused):
            await guest.front_end.command(
                Request.SET_VRING_ENABLE, payloads.build_vring_state(99, 1)
            )
        await guest.inflate([5000])


@pytest.mark.parametrize("step", ["before:2", "after:2", "before:3", "after:3"])
async def test_killed_around_taking_a_part(tmp_path: Path, step: str) -> None:
    """Parts that were taken are on record; parts on record may still be in the socket."""
    payload = payloads.CONFIG.pack(0, 16, 0) + bytes(16)
    data = HEADER.pack(Request.GET_CONFIG, VERSION, len(payload)) + payload
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.get_config()
        away(host)
        host.manager.program = CRASHING
        host.manager.environment["CRASH_AT"] = f"transport.consume:{step}"
        host.manager.start()
        del host.manager.environment["CRASH_AT"]
        with trio.fail_after(20):
            await guest.front_end.get_config()
            for part in (data[:5], data[5:20], data[20:]):
                await guest.front_end.send_raw(part)
                await trio.sleep(0.05)  # so that it most likely arrives alone
            reply = await guest.front_end.receive_reply()
            assert reply.payload[:12] == payload[:12]
            host.manager.wait_restarts(1)
            host.manager.kill()
            assert len(await guest.front_end.get_config()) == 16, (
                "the request is not answered twice"
            )
            await guest.inflate([5000])
