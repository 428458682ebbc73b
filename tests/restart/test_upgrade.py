"""SIGHUP: the daemon becomes the installed program, unnoticed by its guest."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import trio

from protocol import vhost_user_payloads as payloads
from protocol.vhost_user import HEADER, VERSION, HeaderFlag, Request
from protocol.virtio_balloon import Queue
from tests.rig.qmp import QMPClient
from tests.support.command import daemon
from tests.support.end_to_end import MIB, ByHand, by_hand, eventually
from tests.support.restarting.scenario import KEPT, Host, hosting
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.memory import GuestRam


def executions(host: Host) -> int:
    return host.log().count("info: serving")


async def upgrade(host: Host) -> None:
    """Have the daemon re-execute; wait until the same process serves again."""
    pid, before = host.manager.process.pid, executions(host)
    host.manager.process.send_signal(signal.SIGHUP)
    await eventually(lambda: executions(host) > before)
    assert (host.manager.process.pid, host.manager.restarts) == (pid, 0)


async def test_with_a_store(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            host.ask("balloon", id="vm1", value=48 * MIB)
            await guest.inflate([5000])
            for page in (5001, 5002):
                await upgrade(host)
                await guest.inflate([page])
                assert host.vm()["target"] == 48 * MIB
            host.manager.kill()  # the store is still complete
            await guest.inflate([5003])
            await guest.start(bases=await guest.stop())
            assert "RELOADING=1" in "\n".join(host.manager.told)
        await eventually(lambda: len(host.manager.names()) == KEPT)


async def test_a_limit_that_cannot_be_raised(tmp_path: Path) -> None:
    """Neither at a start nor later: an inherited one may be above what the kernel allows."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "sitecustomize.py").write_text(
        "import resource\n"
        "def setrlimit(*arguments):\n"
        "    raise PermissionError(1, 'Operation not permitted')\n"
        "resource.setrlimit = setrlimit\n"
    )
    environment = {"PYTHONPATH": str(packages)}
    async with (
        hosting(tmp_path, limit=0, environment=environment) as host,
        by_hand(host.path()) as guest,
    ):
        await guest.inflate([5000])
        await upgrade(host)
        await guest.inflate([5001])
        warning = (
            "warning: cannot raise the limit of descriptors: [Errno 1] Operation not permitted"
        )
        assert host.log().count(warning) >= 2
        assert "Traceback" not in host.log()


async def test_without_a_store(tmp_path: Path) -> None:
    async with hosting(tmp_path, limit=0) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            await guest.front_end.set_config(slice(4, 8), (7).to_bytes(4, "little"))
            for page in (5001, 5002):
                await upgrade(host)
                await guest.inflate([page])
            assert (await guest.front_end.get_config())[4:8] == (7).to_bytes(4, "little")
            assert host.vm()["requests"]["inflate"] == 3
            await guest.start(bases=await guest.stop())
        await eventually(lambda: not host.vm()["attached"])
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
        assert host.manager.names() == []


async def test_in_the_middle_of_a_message(tmp_path: Path) -> None:
    payload = payloads.build_vring_state(0, 1)
    data = HEADER.pack(Request.SET_VRING_ENABLE, VERSION | HeaderFlag.NEED_REPLY, 8) + payload
    async with hosting(tmp_path, limit=0) as host, by_hand(host.path()) as guest:
        await guest.front_end.send_raw(data[:15])
        await guest.rings[Queue.DEFLATE].submit([guest.pfns([1])])
        await upgrade(host)
        with trio.fail_after(10):
            await guest.front_end.send_raw(data[15:])
            assert (await guest.front_end.receive_reply()).payload == bytes(8)
            await guest.inflate([5000])


PROGRAM = "import runpy\nrunpy.run_module('vhost_balloon', run_name='__main__')\n"
BROKEN = "import time\ntime.sleep(0.1)\nraise SystemExit('no such module')\n"


def install(program: Path, text: str) -> None:
    program.write_text(text)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    program = tmp_path / "program.py"
    install(program, PROGRAM)
    return program


def write(program: Path, text: str) -> None:
    """Install another program in its place."""
    program.write_text(text)


async def test_a_program_that_does_not_start_changes_nothing(tmp_path: Path, program: Path) -> None:
    async with (
        hosting(tmp_path, limit=0, program=(str(program),)) as host,
        by_hand(host.path()) as guest,
    ):
        await guest.inflate([5000])
        install(program, BROKEN)
        host.manager.process.send_signal(signal.SIGHUP)
        reason = "not re-executed: the new program does not start: no such module\n"
        await eventually(lambda: reason in host.log())
        await guest.inflate([5001])
        assert executions(host) == 1


async def test_with_a_store_a_broken_program_is_started_until_it_works(
    tmp_path: Path, program: Path
) -> None:
    """The VM waits meanwhile and loses nothing."""
    async with (
        hosting(tmp_path, program=(str(program),)) as host,
        by_hand(host.path()) as guest,
    ):
        await guest.inflate([5000])
        install(program, BROKEN)
        host.manager.process.send_signal(signal.SIGHUP)
        await eventually(lambda: host.manager.restarts > 2)
        ring = guest.rings[Queue.INFLATE]
        ring.add([guest.pfns([5001])])
        ring.kick()
        install(program, PROGRAM)
        with trio.fail_after(20):
            await ring.wait_used()
        await guest.start(bases=await guest.stop())
        await guest.inflate([5002])


async def test_with_a_front_end_by_descriptor(tmp_path: Path) -> None:
    control = tmp_path / "control"
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    options = (f"--fd={theirs.fileno()}", f"--control-socket={control}", "--stats-interval=0")
    with (
        GuestRam.create(64 * MIB) as ram,
        daemon(*options, fd=theirs.fileno(), wait_for=control) as running,
    ):
        theirs.close()
        _read_until(running.process, "serving")
        async with FrontEnd(trio.socket.from_stdlib_socket(ours), ram) as front_end:
            await front_end.handshake()
            guest = ByHand(front_end, 64)
            await guest.start()
            await guest.inflate([5000])
            running.process.send_signal(signal.SIGHUP)
            await trio.to_thread.run_sync(lambda: _read_until(running.process, "serving"))
            with trio.fail_after(10):
                await guest.inflate([5001])
            with QMPClient(control) as qmp:
                (vm,) = qmp.execute("query-vms")
            assert (vm["attached"], vm["requests"]["inflate"]) == (True, 2)
        assert await trio.to_thread.run_sync(lambda: running.process.wait(10)) == 0


def _read_until(process: object, text: str) -> None:
    stream = getattr(process, "stderr", sys.stderr)
    while text not in (line := stream.readline()):
        assert line, "it ended"
