"""The policy moves the memory of simulated guests, by the control sockets of real daemons."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.control_client import Client
from tests.support.end_to_end import LogLines, eventually, serving
from tests.support.fakes.policed_vms import FakeHost
from tests.support.helpers import GIB, MIB
from vhost_balloon.containment import InternalErrors
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.hub.policed import PolicedVms
from vhost_balloon.hub.vms import HUB_PLACES
from vhost_balloon.policy import runner
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.lock import PolicyLock
from vhost_balloon.policy.memory_file import MemoryFile
from vhost_balloon.policy.release import Released
from vhost_balloon.policy.runner import Policy
from vhost_balloon.policy.settings import Mode, PolicySettings
from vhost_balloon.simulator.guest import SimulatedGuest, running_guest
from vhost_balloon.simulator.options import DriverOptions

SIZE = 128 * MIB
USED = 100 * MIB
FLOOR = 32 * MIB
SETTINGS = PolicySettings(mode=Mode.ON, reserve=GIB, defaults=VmSettings(floor=FLOOR))
NAMES = ("vm1", "vm2")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TICK", 0.5)
    monkeypatch.setattr(runner, "MIN_TICK", 0.2)


@asynccontextmanager
async def guests(folder: Path) -> AsyncIterator[dict[str, SimulatedGuest]]:
    """Guests that have used all their memory and freed it again; nothing of it was reported."""
    options = DriverOptions(report_delay=None)
    async with AsyncExitStack() as stack:
        found = {}
        for name in NAMES:
            control = f"--control-socket={folder / name}.control"
            serves = serving(folder, control, "--stats-interval=1", name=name)
            host = await stack.enter_async_context(serves)
            found[name] = await stack.enter_async_context(running_guest(host.path(), SIZE, options))
            await found[name].touch(USED)
            await found[name].free()
        yield found


def policy_of(folder: Path, host: FakeHost) -> Policy:
    vms = PolicedVms([folder], InternalErrors(HUB_PLACES))
    file = MemoryFile(folder)
    return Policy(vms, host.open, SETTINGS, PolicyLock([folder]), file, lambda *_: None)


async def test_memory_moves_beside_an_operator(tmp_path: Path, log_lines: LogLines) -> None:
    host = FakeHost(0, available=0)
    policy = policy_of(tmp_path, host)
    async with guests(tmp_path) as found, trio.open_nursery() as nursery:
        nursery.start_soon(policy.run)

        def target(name: str) -> int:
            vms = policy.report().vms
            return vms[name].figures.target if name in vms else SIZE

        def actual(name: str) -> int:
            return policy.report().vms[name].figures.actual

        # The host is short: what the guests do not use goes away.
        await eventually(lambda: all(target(name) == FLOOR for name in NAMES))
        await eventually(lambda: all(actual(name) == FLOOR for name in NAMES))

        # A guest that needs it takes it back.
        await found["vm1"].touch(USED)
        await eventually(lambda: target("vm1") > FLOOR)
        assert policy.report().vms["vm1"].decisions[Reason.RELIEF] >= 1
        assert await found["vm1"].verify() == 0

        # An operator's order stands.
        stream = await trio.open_unix_socket(tmp_path / "vm1.control")
        client = Client(stream)
        await client.negotiate()
        await client.execute("balloon", value=64 * MIB)
        await eventually(lambda: reason_of(policy, "vm1") is Reason.MANUAL)
        host.available = 64 * GIB
        await eventually(lambda: target("vm2") == SIZE)
        assert target("vm1") == 64 * MIB
        with trio.fail_after(5):
            await policy.hold("vm2", 60)
            await eventually(lambda: reason_of(policy, "vm2") is Reason.MANUAL)
        held_for = policy.report().vms["vm2"].held_for
        assert held_for is not None
        assert 50 < held_for <= 60

        # Until everything goes back.
        assert await policy.release_all() == Released(["vm1"])
        await eventually(lambda: target("vm1") == SIZE)
        await stream.aclose()
        nursery.cancel_scope.cancel()
    assert not log_lines.having("warning: ", "the policy")
    assert not log_lines.having("internal error")


def reason_of(policy: Policy, name: str) -> Reason:
    return policy.report().vms[name].decision.reason
