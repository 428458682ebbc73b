"""Holds: an operator's order keeps the host's policy from changing the target."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol.virtio_balloon import Queue
from tests.support.control_client import Client, request
from tests.support.end_to_end import MIB, ByHand, Host, by_hand, eventually, told
from tests.support.vms.judged import RAM, give, with_more
from tests.support.vms.operated import operated
from vhost_balloon.control.commands import MAX_HOLD
from vhost_balloon.simulator.guest import running_guest
from vhost_balloon.simulator.options import DriverOptions

NO_DEVICE = "No balloon device has been activated: VM 'vm1' has no front end"


@asynccontextmanager
async def guest_and_client(
    folder: Path, **options: Any
) -> AsyncIterator[tuple[Host, Client, ByHand]]:
    async with operated(folder) as (host, client), by_hand(host.path(), **options) as guest:
        yield host, client, guest


async def held(client: Client) -> tuple[bool, float | None]:
    (vm,) = await client.execute("query-vms")
    return vm["held"], vm.get("held-for")


async def ask(client: Client, command: str, **arguments: Any) -> Any:
    """The reply's "return" or "error", past events."""
    answer = await client.raw(request(command, **arguments))
    while "event" in answer:
        answer = await client.read()
    return answer.get("return", answer.get("error"))


async def target(client: Client) -> int:
    (vm,) = await client.execute("query-vms")
    return int(vm["target"]) // MIB


# What makes a hold, and what ends it


async def test_a_manual_order_keeps_the_policy_away(tmp_path: Path, still_clock: MockClock) -> None:
    async with guest_and_client(tmp_path) as (_, client, _):
        assert await held(client) == (False, None)
        assert await client.execute("balloon", value=48 * MIB, policy=True) == {}
        assert (await held(client), await target(client)) == ((False, None), 48)
        await client.execute("balloon", value=40 * MIB)
        assert await held(client) == (True, None)
        still_clock.jump(1e6)
        refused = await client.failure("balloon", value=48 * MIB, policy=True)
        assert refused == ("GenericError", "an operator holds VM 'vm1'")
        assert await target(client) == 40
        assert await client.execute("policy-release") == {}
        assert (await held(client), await target(client)) == ((False, None), 40)
        await client.execute("balloon", value=48 * MIB, policy=True)
        assert await target(client) == 48


async def test_a_hold_with_a_time_ends_by_itself(tmp_path: Path, still_clock: MockClock) -> None:
    async with guest_and_client(tmp_path) as (_, client, _):
        await client.execute("balloon", value=40 * MIB, hold=60)
        assert await held(client) == (True, 60)
        still_clock.jump(59.5)
        assert await held(client) == (True, 0.5)
        refused = await client.failure("balloon", value=48 * MIB, policy=True)
        assert refused == ("GenericError", "an operator holds VM 'vm1' for another 1 s")
        still_clock.jump(0.5)
        assert await held(client) == (False, None)
        await client.execute("balloon", value=48 * MIB, policy=True)
        assert await target(client) == 48


async def test_a_hold_without_an_order(tmp_path: Path, still_clock: MockClock) -> None:
    async with guest_and_client(tmp_path) as (_, client, _):
        await client.execute("policy-hold", seconds=10)
        assert (await held(client), await target(client)) == ((True, 10), 64)
        await client.execute("policy-hold", id="vm1")
        assert await held(client) == (True, None)
        await client.execute("policy-hold", seconds=MAX_HOLD)
        assert await held(client) == (True, MAX_HOLD), "the newest counts"
        await client.execute("policy-release", id="vm1")
        await client.execute("policy-release")
        assert await held(client) == (False, None)


async def test_a_line_of_the_human_monitor_is_a_manual_order(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with guest_and_client(tmp_path) as (_, client, _):
        line = {"command-line": "balloon 40"}
        assert await client.execute("human-monitor-command", **line) == ""
        assert (await held(client), await target(client)) == ((True, None), 40)


async def test_a_new_front_end_starts_without_a_hold(tmp_path: Path) -> None:
    async with operated(tmp_path) as (host, client):
        async with by_hand(host.path()):
            await client.execute("balloon", value=40 * MIB)
            assert await held(client) == (True, None)
        await eventually(lambda: not host.vm().attached)
        assert await held(client) == (False, None)
        async with by_hand(host.path()):
            assert (await held(client), await target(client)) == ((False, None), 64)


async def test_the_configured_target_is_no_hold(tmp_path: Path, still_clock: MockClock) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('target = "40M"\n')
    async with operated(tmp_path, f"--config={file}") as (host, client), by_hand(host.path()):
        assert (await held(client), await target(client)) == ((False, None), 40)


async def test_an_order_before_the_driver_is_ready_holds(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with guest_and_client(tmp_path, features=None) as (_, client, guest):
        assert await client.execute("balloon", value=40 * MIB) == {"pending": True}
        assert (await client.failure("balloon", value=MIB, policy=True))[0] == "GenericError"
        await guest.start()
        assert (await held(client), await target(client)) == ((True, None), 40)


# Wrong arguments


@pytest.mark.parametrize("seconds", [0, -1, MAX_HOLD + 1, 1 << 62])
async def test_a_hold_has_a_range(tmp_path: Path, still_clock: MockClock, seconds: int) -> None:
    async with guest_and_client(tmp_path) as (_, client, _):
        text = f"expects 1 to {MAX_HOLD} seconds"
        failure = await client.failure("balloon", value=40 * MIB, hold=seconds)
        assert failure == ("GenericError", f"Parameter 'hold' {text}")
        failure = await client.failure("policy-hold", seconds=seconds)
        assert failure == ("GenericError", f"Parameter 'seconds' {text}")
        assert (await held(client), await target(client)) == ((False, None), 64)


async def test_the_policy_makes_no_hold(tmp_path: Path, still_clock: MockClock) -> None:
    async with guest_and_client(tmp_path) as (_, client, _):
        failure = await client.failure("balloon", value=40 * MIB, hold=5, policy=True)
        assert failure == ("GenericError", "Parameter 'hold' is not for orders of the policy")
        failure = await client.failure("balloon", value=40 * MIB, policy=1)
        text = "Invalid parameter type for 'policy', expected: boolean"
        assert failure == ("GenericError", text)
        await client.execute("balloon", value=40 * MIB, policy=False, hold=5)
        assert await held(client) == (True, 5)


@pytest.mark.parametrize("command", ["policy-hold", "policy-release", "balloon-request-stats"])
async def test_without_a_front_end_there_is_nothing_to_hold(tmp_path: Path, command: str) -> None:
    async with operated(tmp_path) as (_, client):
        assert await client.failure(command) == ("DeviceNotActive", NO_DEVICE)
        assert (await client.failure(command, id="x"))[0] == "DeviceNotFound"


# Orders that are judged at once


@pytest.mark.parametrize("seconds", [None, 1])
async def test_a_manual_order_wins_while_memory_is_judged(
    tmp_path: Path, still_clock: MockClock, seconds: int | None
) -> None:
    async with operated(tmp_path) as (host, client), by_hand(host.path(), with_more()) as guest:
        orders = host.vm().device()
        async with trio.open_nursery() as nursery:
            for value, hold in ((300 * MIB, None), (448 * MIB, seconds)):
                nursery.start_soon(orders.order, value, hold)
                await trio.testing.wait_all_tasks_blocked()  # else trio starts them in any order
            refused = await client.failure("balloon", value=40 * MIB, policy=True)
            assert refused[1].startswith("an operator holds VM 'vm1'")
            give(guest, RAM - 50 * MIB)
        now = host.vm().statistics()
        assert (now.target, now.held, now.held_for) == (448 * MIB, True, seconds)


async def test_the_policy_does_not_wait_for_a_sample(
    tmp_path: Path, still_clock: MockClock
) -> None:
    """The guest has more than its last sample says, or less: the order is for what was known."""
    async with operated(tmp_path) as (host, client), by_hand(host.path(), with_more()) as guest:
        give(guest, RAM - 50 * MIB)
        await told(guest)
        assert await ask(client, "balloon", value=300 * MIB, policy=True) == {}
        assert await target(client) == 300

        # It has put the rest to use, which is known only once somebody asks.
        await ask(client, "balloon-request-stats")
        give(guest, RAM + 2000 * MIB)
        await told(guest)
        refused = await ask(client, "balloon", value=200 * MIB, policy=True)
        assert refused["desc"] == "VM 'vm1' has other memory than was known of it"
        assert await target(client) == 300 + 2048, "the same balloon"
        assert await ask(client, "balloon", value=1024 * MIB, policy=True) == {}
        assert await target(client) == 1024


async def test_the_policy_does_not_order_without_a_driver(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with guest_and_client(tmp_path, features=None) as (_, client, guest):
        refused = await client.failure("balloon", value=40 * MIB, policy=True)
        assert refused == ("GenericError", "no driver is ready in VM 'vm1'")
        await guest.start()
        assert await target(client) == 64


# Samples


async def test_a_sample_says_when_it_came_and_what_the_guest_had(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with guest_and_client(tmp_path) as (_, client, guest):
        (vm,) = await ask(client, "query-vms")
        assert not vm.keys() & {"stats-taken", "stats-actual"}
        await guest.front_end.set_config(slice(4, 8), (4096).to_bytes(4, "little"))
        still_clock.jump(5)
        taken = trio.current_time()
        give(guest, 60 * MIB)
        await told(guest)
        await guest.front_end.set_config(slice(4, 8), (8192).to_bytes(4, "little"))
        for _ in range(3):
            still_clock.jump(7)
            (vm,) = await ask(client, "query-vms")
            assert (vm["stats-taken"], vm["stats-actual"]) == (taken, 48 * MIB)
            assert vm["actual"] == 32 * MIB
        assert vm["stats-age"] == 21


async def test_a_sample_counts_what_the_guest_has_as_it_judges(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with operated(tmp_path) as (host, _), by_hand(host.path(), with_more()) as guest:
        give(guest, RAM - 50 * MIB)
        await told(guest)
        assert host.vm().statistics().stats_actual == RAM


async def test_a_sample_is_requested_without_waiting(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with guest_and_client(tmp_path) as (_, client, guest):
        give(guest, 60 * MIB)
        await told(guest)
        ring = guest.rings[Queue.STATS]
        for _ in range(100):
            assert await client.execute("balloon-request-stats") == {}
        assert ring.used_index == 1, "the guest has no more than one buffer"
        give(guest, 61 * MIB)
        await told(guest)
        assert ring.used_index == 2
        give(guest, 62 * MIB)
        await told(guest)
        assert ring.used_index == 2
        (vm,) = await client.execute("query-vms")
        assert vm["stats"] == {"stat-total-memory": 62 * MIB}


async def test_a_guest_without_statistics_cannot_be_asked(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with guest_and_client(tmp_path, features=None) as (_, client, _):
        failure = await client.failure("balloon-request-stats")
        text = "the guest's driver is not ready or provides no statistics"
        assert failure == ("GenericError", text)


async def test_a_simulated_guest_is_asked_and_ordered_as_the_policy_does(tmp_path: Path) -> None:
    """As the hub does: by what the samples say, over the socket, beside an operator."""
    options = DriverOptions(report_delay=None)
    async with (
        operated(tmp_path) as (host, client),
        running_guest(host.path(), 64 * MIB, options),
    ):
        await eventually(lambda: host.vm().statistics().stats_taken is not None)
        (before,) = await ask(client, "query-vms")
        await ask(client, "balloon-request-stats")
        await eventually(lambda: (host.vm().statistics().stats_taken or 0) > before["stats-taken"])
        await ask(client, "balloon", value=40 * MIB, policy=True)
        await eventually(lambda: host.vm().statistics().actual == 40 * MIB)
        await ask(client, "balloon-request-stats")
        await eventually(lambda: host.vm().statistics().stats_actual == 40 * MIB)
        await ask(client, "balloon", value=48 * MIB, hold=3600)
        refused = await ask(client, "balloon", value=MIB, policy=True)
        assert refused["desc"].startswith("an operator holds VM 'vm1' for another 3")
        await eventually(lambda: host.vm().statistics().actual == 48 * MIB)
