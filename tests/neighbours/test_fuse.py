"""Files of a file system whose server is silent, beside another VM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol import vhost_user_payloads as payloads
from protocol.vhost_user import Request
from tests.support.end_to_end import MIB, ByHand, by_hand, eventually
from tests.support.hostile.bad_requests import slot
from tests.support.hostile.neighbours import (
    PATIENCE,
    Neighbour,
    answers,
    hostile,
    neighbour,
    serves,
)
from tests.support.hostile.silent_fuse import SilentFuse, silent_fuse
from tests.support.restarting.scenario import Host
from tests.support.restarting.service_manager import ServiceManager

R = Request
ROLES = {
    "kick": (R.SET_VRING_KICK, payloads.build_u64(0)),
    "call": (R.SET_VRING_CALL, payloads.build_u64(0)),
    "memory": (R.ADD_MEM_REG, slot(1 << 32, 16 * MIB)),
    "channel": (R.SET_BACKEND_REQ_FD, b""),
}


class Stubborn(ServiceManager):
    """Starts the next process beside one that cannot be killed, as systemd does."""

    def _watch(self) -> None:
        process = self.process
        process.wait()
        self._read_all()
        if not self._ending and process is self.process:
            self.restarts += 1
            self._spawn()
            self._watch()

    def start_beside(self) -> None:
        assert self.process.poll() is None
        self.start()


@contextmanager
def silent_file(folder: Path, *, deaf: bool = False) -> Iterator[SilentFuse]:
    """A file whose server is silent from here on, and open."""
    with silent_fuse(folder) as server:
        server.open()
        server.fall_silent(deaf=deaf)
        yield server


async def send(guest: ByHand, role: str, server: SilentFuse) -> None:
    """The file, which is open nowhere else then."""
    request, payload = ROLES[role]
    await guest.front_end.send(request, payload, [server.fd], need_reply=True)
    server.let_go()


async def is_answered(guest: ByHand, role: str) -> None:
    """Once the server is gone, its file is nothing that can be used: it is refused, but memory
    is left alone."""
    with trio.fail_after(PATIENCE):
        reply = await guest.front_end.receive_reply()
    assert payloads.parse_u64(reply.payload) == (role != "memory")
    await answers(guest)


@pytest.mark.parametrize("deaf", [False, True], ids=["reads", "deaf"])
@pytest.mark.parametrize("role", ROLES)
async def test_a_silent_file(tmp_path: Path, role: str, deaf: bool) -> None:
    with neighbour() as beside, hostile() as daemon:
        with silent_file(tmp_path / "silent", deaf=deaf) as server:
            async with by_hand(daemon.socket) as guest:
                await send(guest, role, server)
                await beside.is_served_for(1.5)
                await another_vm_starts()
                server.end()
                await is_answered(guest, role)
        await serves(daemon.socket)


async def another_vm_starts() -> None:
    with hostile() as daemon:
        await serves(daemon.socket)


def told(host: Host) -> Any:
    return host.vm()["state"]


@pytest.mark.parametrize("role", ["kick", "memory"])
async def test_the_service_is_restarted_meanwhile(tmp_path: Path, role: str) -> None:
    sockets = (f"--socket-path={tmp_path}/vm1.sock", f"--control-socket={tmp_path}/control")
    with (
        neighbour() as beside,
        Stubborn("--stats-interval=0", *sockets) as manager,
        silent_file(tmp_path / "silent") as server,
    ):
        host = Host(tmp_path, manager)
        async with by_hand(host.path()) as guest:
            await send(guest, role, server)
            await hangs(beside, manager)
            stuck = manager.process
            stuck.kill()
            await trio.to_thread.run_sync(manager.start_beside)
            assert await trio.to_thread.run_sync(told, host) == "stuck"
            await beside.goes_on()
            assert stuck.poll() is None
            server.end()
            try:
                await is_answered(guest, role)
            finally:
                print(host.log())  # pytest shows it if the test fails
            await beside.goes_on()


async def hangs(beside: Neighbour, manager: ServiceManager) -> None:
    """The daemon waits for the server: in its fstat, or in its close."""
    wait = Path(f"/proc/{manager.process.pid}/wchan")
    await eventually(lambda: "fuse" in wait.read_text() or "request_wait" in wait.read_text())
    await beside.goes_on()
