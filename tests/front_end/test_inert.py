"""Unusable state: the connection stays, every request is answered, nothing is done."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from protocol.vhost_user import HEADER, VERSION, HeaderFlag, Request
from protocol.vhost_user_payloads import build_vring_state
from tests.support.end_to_end import BLOCK, MIB, by_hand, eventually, fill, is_filled
from tests.support.restarting.scenario import CRASHING, Host, damage, hosting, records, set_version
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.store.record import STATE_VERSION
from vhost_balloon.store.shelf import ENDS


def promote(host: Host) -> None:
    """Make the records those of the next version."""
    for fd in records(host):
        set_version(fd, STATE_VERSION + 1)


async def is_inert(host: Host, front_end: FrontEnd) -> None:
    """Check that every request is acknowledged, across stop and cont."""
    assert host.vm()["state"] == "inert"
    with trio.fail_after(10):
        await front_end.enable_rings(False)
        await front_end.get_vring_base(0)
        await front_end.get_config()
        await front_end.set_config(slice(4, 8), bytes(4))
        await front_end.enable_rings(True)
        await front_end.command(Request.RESET_DEVICE)


async def test_damaged_state_leaves_an_inert_connection(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            before = host.vm()
            host.manager.stop(signal.SIGKILL)
            damage(host)
            host.manager.start()
            await is_inert(host, guest.front_end)
            kept = ("front-end-pid", "settings", "socket-path", "stats-interval")
            assert {name: host.vm()[name] for name in kept} == {name: before[name] for name in kept}
            assert host.vm()["pause-reasons"] == ["inert"]
            host.ask("balloon-pause")
            assert host.vm()["pause-reasons"] == ["operator", "inert"]
            host.ask("balloon-resume")
            host.manager.kill()
            await is_inert(host, guest.front_end)
            assert host.manager.restarts == 1, "no crash but the requested one"
        await eventually(lambda: not host.vm()["attached"])
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])


@asynccontextmanager
async def damaged(folder: Path, crash: str = "") -> AsyncIterator[tuple[Host, FrontEnd]]:
    """An inert VM; each of its processes from then on is killed at the step crash."""
    async with hosting(folder) as host, by_hand(host.path()) as guest:
        host.manager.stop(signal.SIGKILL)
        damage(host)
        host.manager.program = CRASHING
        host.manager.environment["CRASH_AT"] = crash
        host.manager.start()
        yield host, guest.front_end


@pytest.mark.parametrize(
    "step",
    [
        "transport.consume:before",
        "transport.consume:after",
        "journal.taken:after",
        "record.save:after",
        "journal.done:after",
        "journal.sending:after",
        "journal.sent:before",
        "journal.sent:after",
    ],
)
async def test_each_request_is_answered_once(tmp_path: Path, step: str) -> None:
    async with damaged(tmp_path, f"{step}:7") as (host, front_end):
        for value in range(8):
            config = bytes([value] * 4)
            with trio.fail_after(30):
                await front_end.set_config(slice(4, 8), config)
                assert (await front_end.get_config())[4:8] == config
        assert host.manager.restarts > 0
        del host.manager.environment["CRASH_AT"]
        host.manager.kill()
        await is_inert(host, front_end)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
async def test_state_that_the_front_end_reads_back_survives(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Status, config space, ring bases and a partial message reach the next process."""
    enable = HEADER.pack(Request.SET_VRING_ENABLE, VERSION | HeaderFlag.NEED_REPLY, 8)
    async with damaged(tmp_path) as (host, front_end):
        await front_end.set_u64(Request.SET_STATUS, 7)
        await front_end.set_config(slice(4, 8), b"1234")
        await front_end.command(Request.SET_VRING_BASE, build_vring_state(2, 345))
        await front_end.send_raw(enable + bytes(3))
        served = host.log().count("info: serving")
        host.manager.process.send_signal(number)
        await eventually(lambda: host.log().count("info: serving") > served)
        with trio.fail_after(30):
            await front_end.send_raw(bytes(5))
            assert (await front_end.receive_reply()).payload == bytes(8)
            assert await front_end.get_u64(Request.GET_STATUS) == 7
            assert (await front_end.get_config())[4:8] == b"1234"
            assert await front_end.get_vring_base(2) == 345
        await is_inert(host, front_end)


@pytest.mark.parametrize("lost", [(".record",), (".shelf",), (".record", ".shelf", ".pipe")])
async def test_descriptors_lost_by_the_service_manager(
    tmp_path: Path, lost: tuple[str, ...]
) -> None:
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.manager.stop(signal.SIGKILL)
            host.manager.forget(*lost)
            host.manager.start()
            await is_inert(host, guest.front_end)
            host.manager.kill()
            await is_inert(host, guest.front_end)
        await eventually(lambda: not host.vm()["attached"])
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.manager.kill()
            await guest.inflate([5001])


@pytest.mark.parametrize("lost", [damage, lambda host: host.manager.forget(".record")])
@pytest.mark.parametrize(
    "step",
    [
        "store.remove:after:1",
        "store.keep:before:1",
        "store.keep:after:1",
        "store.keep:after:4",
        "record.save:before:1",
        "record.save:after:1",
        "record.save:after:2",
        "record.save:after:3",
        "any:after:12",
    ],
)
async def test_a_death_soon_after_the_state_was_lost(
    tmp_path: Path, step: str, lost: Callable[[Host], None]
) -> None:
    """The connection is not mistaken for a new one without messages so far."""
    crashes = ("", step, step)
    async with hosting(tmp_path, crashes=crashes) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        host.manager.stop(signal.SIGKILL)
        lost(host)
        host.manager.start()
        await is_inert(host, guest.front_end)


async def test_one_end_of_the_shelf_is_lost(tmp_path: Path) -> None:
    """The other three are useless, and are not mistaken for ends of the next shelf."""
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.manager.stop(signal.SIGKILL)
            host.manager.forget(".shelf-1-a-out")
            host.manager.start()
            await is_inert(host, guest.front_end)
            ends = [name for name in host.manager.names() if name.startswith(".shelf")]
            assert ends == [f".shelf-2-{end}" for end in ENDS]
        await eventually(lambda: not host.vm()["attached"])
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.manager.kill()
            await guest.inflate([5001])


async def test_state_of_a_later_version_discards_nothing(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, 32 * MIB, BLOCK)
        await guest.inflate([5000])
        host.manager.stop(signal.SIGKILL)
        promote(host)
        host.manager.start()
        for _ in range(2):
            await guest.report((32 * MIB, BLOCK))
            assert is_filled(guest.ram, 32 * MIB, BLOCK)
            assert "foreign-state" in host.vm()["refused-bytes"]
            host.manager.kill()
        bases = await guest.stop()
        await guest.start(bases=bases)
        await guest.inflate([5001])


async def test_a_front_end_that_crashes_the_daemon_becomes_inert_and_the_next_is_served(
    tmp_path: Path,
) -> None:
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.ask("balloon-pause")
            before = host.vm()
            host.manager.stop(signal.SIGKILL)
            host.manager.program = CRASHING
            host.manager.environment["CRASH_AT"] = "handle:bug:1"
            host.manager.start()
            with trio.fail_after(30):
                await guest.front_end.get_config()
            assert host.manager.restarts == 3
            await is_inert(host, guest.front_end)
            after = host.vm()
            kept = ("front-end-pid", "settings", "inflated-bytes", "requests", "discard-seconds")
            assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
            assert after["pause-reasons"] == ["operator", "inert"]
            del host.manager.environment["CRASH_AT"]
            host.manager.kill()
            await is_inert(host, guest.front_end)
        await eventually(lambda: "crashed this program 3 times" in host.log())
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
