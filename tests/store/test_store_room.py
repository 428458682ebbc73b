"""Only a few descriptors go to the service manager, all created by the daemon."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from protocol.vhost_user import HEADER, VERSION, Request
from tests.support.end_to_end import ByHand, by_hand, eventually
from tests.support.restarting.scenario import KEPT, Host, hosting
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.memory import GuestRam

LIMIT: Final = 16
"""FileDescriptorStoreMax= of the unit."""
OURS: Final = re.compile(
    r"\.lock|\.pipe|\.record-\d+|\.shelf-\d+-[ab]-(in|out)|\.listener-\d+@[0-9a-f,]+|"
    r"\.connection-\d+"
)
KINDS: Final = {
    ".lock": r"/memfd:vhost-balloon lock",
    ".record": r"/memfd:vhost-balloon ",
    ".pipe": r"pipe:",
    ".shelf": r"socket:",
    ".listener": r"socket:",
    ".connection": r"socket:",
}


def identity(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def check(host: Host, *foreign: int) -> None:
    """Everything stored is ours by name and kind (no eventfd), and no file is foreign."""
    names = host.manager.names()
    assert len(names) == len(set(names)) <= KEPT + 1
    assert all(OURS.fullmatch(name) for name in names), names
    for name, fd in host.manager.stored:
        prefix = re.split(r"[-@]", name)[0]
        assert re.match(KINDS[prefix], os.readlink(f"/proc/self/fd/{fd}")), name
        assert identity(fd) not in {identity(other) for other in foreign}, name


async def test_what_a_front_end_sends_is_never_stored(tmp_path: Path) -> None:
    async with hosting(tmp_path, limit=100) as host, by_hand(host.path()) as guest:
        memory, ports = guest.ram.regions[0].fd, guest.front_end.ports
        check(host, memory)
        for _ in range(3):
            await guest.front_end.set_mem_table()
            for queue, index in guest.indexes.items():
                kick = guest.rings[queue].kick_event = ports[index].renew_kick()
                data = bytes([index, *bytes(7)])
                await guest.front_end.command(Request.SET_VRING_KICK, data, [kick.fileno()])
            await guest.inflate([5000])
            check(host, memory)
            host.manager.kill()
            await guest.inflate([5001])
            check(host, memory)


async def test_nor_are_descriptors_that_no_request_expects(tmp_path: Path) -> None:
    """In any number, with any request, whole and in parts."""
    async with hosting(tmp_path, limit=100) as host, by_hand(host.path()) as guest:
        files = [os.memfd_create("foreign") for _ in range(3)] + [os.eventfd(0) for _ in range(3)]
        sockets = socket.socketpair()
        files += [sock.fileno() for sock in sockets]
        for round_number in range(200):
            request = (*Request, 1000)[round_number % (len(Request) + 1)]
            if request in (Request.SET_BACKEND_REQ_FD, Request.RESET_OWNER):
                continue
            data = HEADER.pack(request, VERSION, 8) + bytes(8)
            count = (1, 2, 8, 9, 60)[round_number % 5]
            await guest.front_end.send_raw(data[:13], (files * 8)[:count])
            await guest.front_end.send_raw(data[13:], files[:1] if round_number % 2 else [])
        check(host, *files)
        host.manager.kill()
        check(host, *files)
        for fd in files[:-2]:
            os.close(fd)
        for sock in sockets:
            sock.close()


async def test_front_ends_that_come_and_go_leave_nothing(tmp_path: Path) -> None:
    async with hosting(tmp_path, limit=LIMIT) as host:
        for round_number in range(5):
            async with by_hand(host.path()) as guest:
                await guest.inflate([5000])
                assert len(host.manager.names()) == KEPT + 1
                if round_number % 2:
                    host.manager.kill()
                    await guest.inflate([5001])
            await eventually(lambda: len(host.manager.names()) == KEPT)
        check(host)


# System calls on a front end's descriptors


STRACE: Final = shutil.which("strace")
_RECEIVED: Final = re.compile(r"recvmsg\((\d+), .*cmsg_type=SCM_RIGHTS, cmsg_data=\[([\d, ]+)\]")
_SENT: Final = re.compile(r"sendmsg\((\d+), .*cmsg_type=SCM_RIGHTS, cmsg_data=\[([\d, ]+)\]")
_ANY: Final = re.compile(r"(\w+)\((\d+)\b")


@contextmanager
def traced(pid: int, file: Path) -> Iterator[None]:
    """Trace all of a process's system calls on descriptors."""
    assert STRACE is not None
    calls = "trace=%desc,sendmsg,recvmsg,recvfrom,sendto,close,kcmp"
    with subprocess.Popen(
        [STRACE, "-f", "-s", "16", "-e", calls, "-o", str(file), "-p", str(pid)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "attached" in line, line
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)


def too_early(trace: str) -> list[str]:
    """Calls on received descriptors that are not on the shelf yet, except the one that puts them
    there."""
    unshelved: set[int] = set()
    found = []
    for line in trace.splitlines():
        if received := _RECEIVED.search(line):
            unshelved |= {int(number) for number in received[2].split(", ")}
        elif sent := _SENT.search(line):
            unshelved -= {int(number) for number in sent[2].split(", ")}
        elif (call := _ANY.search(line)) and int(call[2]) in unshelved:
            if call[1] == "close":
                unshelved.remove(int(call[2]))
            else:
                found.append(line)
    return found


def test_a_call_that_is_too_early_would_be_seen() -> None:
    received = "7 recvmsg(9, {msg_control=[{cmsg_type=SCM_RIGHTS, cmsg_data=[20, 21]}]}, 0) = 20"
    shelved = "7 sendmsg(4, {msg_control=[{cmsg_type=SCM_RIGHTS, cmsg_data=[20, 21]}]}, 0) = 9"
    look = "7 fstat(21, {st_mode=S_IFREG|0777}) = 0"
    assert too_early("\n".join([received, look, shelved, look])) == [look]
    assert too_early("\n".join([look, received, shelved, look])) == []


async def connects(host: Host, ram: GuestRam) -> None:
    """A complete start of the device, and a kick in two parts."""
    async with await FrontEnd.connect(host.path(), ram) as front_end:
        await front_end.handshake()
        guest = ByHand(front_end, 64)
        await guest.start()
        await guest.inflate([2000])
        data = HEADER.pack(Request.SET_VRING_CALL, VERSION, 8) + bytes(8)
        call = front_end.ports[0].call
        await front_end.send_raw(data[:13], [call.fileno()])
        await front_end.send_raw(data[13:])
        await guest.inflate([2001])


@pytest.mark.skipif(STRACE is None, reason="strace shows it")
@pytest.mark.parametrize("limit", [0, LIMIT])
async def test_nothing_is_done_with_a_descriptor_before_it_is_on_the_shelf(
    tmp_path: Path, limit: int
) -> None:
    """Not even fstat(): a call on a file whose server is silent hangs."""
    file = tmp_path / "trace"
    async with hosting(tmp_path, limit=limit) as host:
        with GuestRam.create(16 * (1 << 20)) as ram, traced(host.manager.process.pid, file):
            await connects(host, ram)
        trace = file.read_text()
    assert len(_RECEIVED.findall(trace)) > 10
    assert too_early(trace) == []
    assert "kcmp" not in trace
