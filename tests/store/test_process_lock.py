"""Two processes never serve one VM: the lock, and a daemon whose predecessor cannot be killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from protocol.virtio_balloon import Queue
from tests.rig.errors import QMPError
from tests.support.end_to_end import BLOCK, MIB, by_hand, eventually, fill, is_filled
from tests.support.restarting.scenario import KEPT, Host, hosting, upgrade
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.wire import BackEndGone
from vhost_balloon.store.descriptors import LOCK
from vhost_balloon.store.process_lock import ProcessLock

WATCHDOG = {"WATCHDOG_USEC": "400000"}


def takes_in_child(lock: ProcessLock) -> bool:
    """Whether another process, which then ends, can take the lock."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if lock.take() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# The lock


def test_one_process_has_the_lock_and_may_take_it_again() -> None:
    lock = ProcessLock.create()
    assert takes_in_child(lock)
    assert lock.take()
    assert lock.take()
    assert not takes_in_child(lock)


def test_the_lock_ends_with_the_process_not_with_the_descriptor() -> None:
    """The service manager keeps the descriptor for good."""
    lock = ProcessLock.create()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(tell, b"1" if lock.take() else b"0")
        signal.pause()
        os._exit(0)
    assert os.read(told, 1) == b"1"
    assert not lock.take()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert lock.take()
    os.close(told)
    os.close(tell)


def test_the_lock_outlives_an_execution_in_place() -> None:
    lock = ProcessLock.create()
    os.set_inheritable(lock.fd.fileno(), True)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(tell, 1)
        assert lock.take()
        os.execv("/bin/sh", ["sh", "-c", "echo; exec sleep 60"])
    os.read(told, 1)
    assert not lock.take()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert lock.take()
    os.close(told)
    os.close(tell)


# A predecessor that cannot be killed


@contextmanager
def unkillable(host: Host) -> Iterator[subprocess.Popen[bytes]]:
    """Stands for a process in uninterruptible sleep: it is stopped and keeps its lock. The service
    manager starts the next one beside it."""
    process = host.manager.process
    process.send_signal(signal.SIGSTOP)
    host.manager.abandon()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def watchdogs(host: Host) -> int:
    return sum("WATCHDOG=1" in text for text in host.manager.told)


async def is_stuck(host: Host) -> None:
    """The daemon says that it waits, feeds the watchdog and serves nothing."""
    vm = host.vm()
    assert (vm["state"], vm["attached"]) == ("stuck", False)
    assert "STATUS=waiting for the previous process, which cannot be killed" in "\n".join(
        host.manager.told
    )
    fed = watchdogs(host)
    await eventually(lambda: watchdogs(host) > fed + 2)


async def test_the_next_process_waits_and_continues_once_it_has_the_lock(tmp_path: Path) -> None:
    async with hosting(tmp_path, environment=WATCHDOG) as host, by_hand(host.path()) as guest:
        fill(guest.ram, 32 * MIB, 2 * BLOCK)
        await guest.report((48 * MIB, BLOCK))
        freed, stored = host.vm()["freed-bytes"], host.manager.names()
        with unkillable(host) as before:
            host.manager.start()
            await is_stuck(host)
            assert host.vm()["freed-bytes"] >= freed, "counters never go back"
            reporting, inflate = guest.rings[Queue.REPORTING], guest.rings[Queue.INFLATE]
            reporting.add([(32 * MIB, BLOCK, True)])
            reporting.kick()
            inflate.add([guest.pfns(range((36 * MIB) // 4096, (37 * MIB) // 4096))])
            inflate.kick()
            await guest.front_end.send(1)  # GET_FEATURES
            await trio.sleep(1)
            assert (reporting.used_index, inflate.used_index) == (1, 0)
            assert is_filled(guest.ram, 32 * MIB, 2 * BLOCK)
            with pytest.raises(trio.TooSlowError), trio.fail_after(0.5):
                await guest.front_end.receive_reply()
            assert host.manager.names() == stored, "nothing is added or removed"
            host.ask("balloon-pause")
            with pytest.raises(QMPError, match="cannot be killed"):
                host.ask("upgrade")
            before.kill()
            with trio.fail_after(10):
                assert (await guest.front_end.receive_reply()).request == 1
                await reporting.wait_used()
                await inflate.wait_used()
        vm = host.vm()
        assert (vm["attached"], vm["reporting-paused"]) == (True, True)
        assert is_filled(guest.ram, 32 * MIB, BLOCK), (
            "the request waited too long, and reporting is paused"
        )
        await eventually(lambda: "STATUS=a front end is attached" in host.manager.told)
        host.ask("balloon-resume")
        await guest.report((32 * MIB, BLOCK))
        assert not guest.ram.resident_in(32 * MIB, BLOCK)
        await guest.start(bases=await guest.stop())
        assert host.manager.names() == stored


async def test_a_front_end_that_waits_for_the_lock_can_be_disconnected(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            with unkillable(host):
                host.manager.start()
                assert host.vm()["state"] == "stuck"
                await guest.front_end.send(1)  # GET_FEATURES: nobody answers
                host.ask("vm-disconnect")
                with trio.fail_after(5), pytest.raises((BackEndGone, ConnectionResetError)):
                    await guest.front_end.receive_reply()
                with pytest.raises(QMPError, match="no front end"):
                    host.ask("vm-disconnect")
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.manager.kill()
            await guest.inflate([5001])
        await eventually(lambda: len(host.manager.names()) == KEPT)


async def test_everything_that_the_previous_process_did_counts(tmp_path: Path) -> None:
    """The old process was only slow: it continues for a while, then ends."""
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        with unkillable(host) as before:
            host.manager.start()
            before.send_signal(signal.SIGCONT)
            await guest.inflate([5001])
            await guest.start(bases=await guest.stop())
            await guest.front_end.set_config(slice(4, 8), (7).to_bytes(4, "little"))
            await guest.inflate([5002])
            before.send_signal(signal.SIGTERM)
            # A new connection may still be accepted by the process that ends.
            await eventually(lambda: host.insist("query-vms")[0]["attached"])
        assert host.vm()["requests"]["inflate"] == 3
        assert (await guest.front_end.get_config())[4:8] == (7).to_bytes(4, "little")
        await guest.inflate([5003])
        assert "inert" not in host.log()


@contextmanager
def held(lock: int) -> Iterator[None]:
    """Another process holds the lock: this one would lose it by closing any descriptor of the
    file."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        os.write(tell, b"1")
        signal.pause()
    assert os.read(told, 1) == b"1"
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)


def stored_lock(host: Host) -> int:
    (lock,) = [fd for name, fd in host.manager.stored if name == LOCK]
    return lock


async def test_a_lock_that_another_process_holds(tmp_path: Path) -> None:
    """No front end is served: one that connects waits until the lock is free."""
    async with hosting(tmp_path) as host:
        await eventually(lambda: len(host.manager.names()) == KEPT)
        host.manager.stop(signal.SIGKILL)
        stored = host.manager.names()
        with held(stored_lock(host)):
            host.manager.start()
            assert host.vm()["state"] == "stuck"
            with GuestRam.create(16 * MIB) as ram:
                async with await FrontEnd.connect(host.path(), ram) as front_end:
                    with pytest.raises(trio.TooSlowError), trio.fail_after(1):
                        await front_end.handshake()
            assert host.manager.names() == stored
            assert host.manager.stop(signal.SIGTERM) == 0, "it can be stopped and started"
            host.manager.start()
            assert host.vm()["state"] == "stuck"
        await eventually(lambda: host.vm()["state"] == "disconnected")
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
        assert not any(error in host.log() for error in ("Traceback", "lost"))
        await eventually(lambda: len(host.manager.names()) == KEPT)


@pytest.mark.parametrize("times", [1, 3])
async def test_an_upgrade_in_place_keeps_the_lock(tmp_path: Path, times: int) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        lock = stored_lock(host)
        for _ in range(times):
            with pytest.raises(BlockingIOError):
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await upgrade(host)
        await guest.inflate([5000])
        with pytest.raises(BlockingIOError):
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with unkillable(host):
            host.manager.start()
            assert host.vm()["state"] == "stuck"
        await eventually(lambda: host.vm()["attached"])
        await guest.inflate([5001])


async def test_without_a_service_manager_there_is_no_process_to_wait_for(tmp_path: Path) -> None:
    async with hosting(tmp_path, limit=0) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.manager.kill()
            with pytest.raises(BackEndGone):
                await guest.front_end.get_config()
        assert host.vm()["state"] == "disconnected"


SHORT = """\
import runpy
from vhost_balloon.daemon import daemon
from vhost_balloon.errors import OperatorError

async def take_over(*_):
    raise OperatorError("the system is short of resources: here")

daemon.take_over = take_over
runpy.run_module('vhost_balloon', run_name='__main__')
"""


async def test_a_mistake_found_after_waiting_is_one_line_and_status_2(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SHORT)
    async with hosting(tmp_path, environment=WATCHDOG) as host, by_hand(host.path()):
        with unkillable(host):
            host.manager.program = (str(program),)
            host.manager.start()
            waiting = host.manager.process
        assert await trio.to_thread.run_sync(lambda: waiting.wait(30)) == 2
        assert "vhost-balloon: the system is short of resources: here\n" in host.log()
        assert "Traceback" not in host.log()
