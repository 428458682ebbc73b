"""Plays both acts: three daemons, three simulated guests, and in the second act the hub.

The daemons and the hub are the real programs in processes of their own, and the guests' memory is
real. Only the host is made up (host.py), so that the demo needs neither root nor a full machine.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, Final

import trio

from vhost_balloon.demo.daemon import running_daemon, running_program
from vhost_balloon.demo.history import Mark
from vhost_balloon.demo.policy import picture
from vhost_balloon.demo.policy.history import Act, GuestSample, HostSample
from vhost_balloon.demo.policy.host import PlayedHost
from vhost_balloon.demo.policy.lives import ACT_SECONDS, LIMIT, NAMES, READER, RESERVE, live
from vhost_balloon.demo.qmp import QmpClient
from vhost_balloon.demo.screen import Screen
from vhost_balloon.simulator.guest import SimulatedGuest, running_guest
from vhost_balloon.sizes import format_size

SAMPLE_SECONDS: Final = 0.2
MIB: Final = 1 << 20
_PREFIX: Final = "vhost-balloon-demo-"


async def show_policy(memory: int, pace: float) -> None:
    """Play both acts and print the comparison. memory: each guest's, in bytes.

    Raises:
        DemoError: a program does not start, or has gone.
    """
    acts = []
    for title, on in (("reporting only", False), ("with the policy", True)):
        limit = int(memory * LIMIT)
        act = Act(
            f"vhost-balloon, {title}: 3 guests with {format_size(memory)} each, on a host with "
            f"{format_size(limit)}",
            limit,
            int(memory * RESERVE) // MIB * MIB if on else 0,
            memory,
            ACT_SECONDS * pace,
        )
        screen = Screen(act, sys.stdout, picture.frame, picture.log_line)
        with screen:
            await _play(screen, pace)
            screen.write([""])
        acts.append(act)
    without, with_policy = acts
    screen.write(picture.summary(without, with_policy, READER))


async def _play(screen: Screen[Act], pace: float) -> None:
    act = screen.history
    async with AsyncExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary))
        host = stack.enter_context(closing(PlayedHost(folder / "host", act.limit)))
        daemons = {
            name: await stack.enter_async_context(
                running_daemon(folder, True, name, "--stats-interval=2")
            )
            for name in NAMES
        }
        guests = {
            name: await stack.enter_async_context(running_guest(folder / f"{name}.sock", act.size))
            for name in NAMES
        }
        hub = await _hub(stack, folder, host, act.reserve) if act.reserve else None
        nursery = await stack.enter_async_context(trio.open_nursery())
        start = trio.current_time()
        nursery.start_soon(_measure, screen, host, guests, daemons, hub, start)

        def mark(name: str, text: str) -> None:
            act.marks.append(Mark(trio.current_time() - start, name, text))

        await live(guests, pace, mark)
        nursery.cancel_scope.cancel()


async def _hub(stack: AsyncExitStack, folder: Path, host: PlayedHost, reserve: int) -> QmpClient:
    """Start the hub with the policy on."""
    config, run_folder = folder / "hub.toml", folder / "hub"
    run_folder.mkdir()
    config.write_text(f'[policy]\nmode = "on"\nreserve = {reserve}\ncgroup = "{host.folder}"\n')
    arguments = [
        *("-m", "vhost_balloon.hub"),
        f"--folder={folder}",
        f"--run-folder={run_folder}",
        f"--config={config}",
        "--metrics-address=127.0.0.1:0",
    ]
    return await stack.enter_async_context(
        running_program(arguments, run_folder / "control", folder / "hub.log")
    )


async def _measure(
    screen: Screen[Act],
    host: PlayedHost,
    guests: dict[str, SimulatedGuest],
    daemons: dict[str, QmpClient],
    hub: QmpClient | None,
    start: float,
) -> None:
    """Show samples, and tell the host what its guests use, until cancelled."""
    act = screen.history
    while True:
        policy = await hub.execute("query-policy") if hub is not None else {"vms": []}
        reasons = {vm["id"]: vm["reason"] for vm in policy["vms"]}
        sampled = []
        for name, guest in guests.items():
            (vm,) = await daemons[name].execute("query-vms")
            sampled.append(_sample(name, guest, vm, reasons.get(name, "")))
        sample = HostSample(trio.current_time() - start, tuple(sampled))
        host.spend(sample.resident)
        act.samples.append(sample)
        screen.show()
        await trio.sleep(SAMPLE_SECONDS)


def _sample(name: str, guest: SimulatedGuest, vm: dict[str, Any], reason: str) -> GuestSample:
    target = vm.get("target", guest.ram.size)
    return GuestSample(name, guest.in_use, guest.cached, guest.resident(), target, reason)
