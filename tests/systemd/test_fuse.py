"""A memory file whose FUSE server is silent blocks only the daemon of its own VM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from protocol.vhost_user import Request
from protocol.vhost_user_payloads import parse_u64
from tests.rig.errors import GuestError, QMPError
from tests.rig.systemd import WEB1, Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.end_to_end import MIB, ByHand, by_hand
from tests.support.hostile.bad_requests import slot
from tests.support.hostile.silent_fuse import SilentFuse, silent_fuse
from tests.support.vms.crowd import ENOUGH, Crowd

NEIGHBOUR = Instance("neighbour")
STOP = "[Service]\nTimeoutStopSec=2s\n"
"""Instead of the unit's 10 s: systemd waits twice for a process that it cannot kill."""


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    with systemd_host.options("--discard=always"):
        systemd_host.drop_in(WEB1.service, STOP)
        yield systemd_host
        systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")
        systemd_host.drop_in(WEB1.service, "")


async def send_memory(guest: ByHand, server: SilentFuse) -> None:
    """Send the file; afterwards it is open nowhere else."""
    request = Request.ADD_MEM_REG
    await guest.front_end.send(request, slot(1 << 32, 16 * MIB), [server.fd], need_reply=True)
    server.let_go()


def hangs(host: SystemdHost) -> bool:
    wait = Path(f"/proc/{host.daemon_pid()}/wchan").read_text()
    return "fuse" in wait or "request_wait" in wait


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def is_stuck(host: SystemdHost) -> bool:
    """Whether the next process runs and waits for the one before it. Systemd still answers."""
    host.systemctl("is-active", NEIGHBOUR.service)
    try:
        with host.qmp() as qmp:
            return bool(qmp.execute("query-vms", timeout=1)[0]["state"] == "stuck")
    except (OSError, GuestError, QMPError):
        return False


async def test_a_silent_file_holds_up_its_own_vm_alone(host: SystemdHost, tmp_path: Path) -> None:
    host.systemctl("start", WEB1.socket, NEIGHBOUR.socket)
    with Crowd(host) as crowd, silent_fuse(tmp_path / "silent") as server:
        crowd.attach({NEIGHBOUR.vm: host.path(NEIGHBOUR.path)})
        server.open()
        server.fall_silent()
        async with by_hand(host.path(WEB1.path)) as guest:
            await send_memory(guest, server)
            await trio.to_thread.run_sync(wait_until, lambda: hangs(host), 20)
            pid = host.daemon_pid()
            crowd.begin_using(NEIGHBOUR.vm)
            host.systemctl("restart", "--no-block", WEB1.service)
            await trio.to_thread.run_sync(wait_until, lambda: is_stuck(host), 40)
            uses = crowd.end_using()
            assert is_there(pid), "it cannot be killed"
            assert uses.times > ENOUGH
            assert uses.kept == 0
            server.end()
            with trio.fail_after(20):
                reply = await guest.front_end.receive_reply()
            assert parse_u64(reply.payload) == 0, "its region is left alone"
            await guest.stop()
    host.wait_logged("the previous process has ended")
