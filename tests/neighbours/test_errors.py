"""An error number at each system call of one VM's daemon, beside another VM.

strace(1) gives them. The daemon either goes on or ends with a word on why: never does it hang, lose
memory that nobody named, or give a wrong answer.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from protocol.virtio_balloon import Queue
from tests.rig.daemon import Daemon
from tests.rig.errors import GuestError, RigTimeout
from tests.rig.qmp import QMPClient
from tests.support.end_to_end import BLOCK, MIB, PAGE, ByHand, by_hand, eventually, fill, is_filled
from tests.support.hostile.neighbours import hostile, neighbour, serves
from tests.support.huge_pages import need_root
from vhost_balloon.simulator.connection import Refused
from vhost_balloon.simulator.wire import BackEndGone

KEPT: Final = range(24 * MIB, 28 * MIB)
ERRORS: Final = {
    "accept4": ("EMFILE", "ENOMEM", "ECONNABORTED"),
    "close": ("EIO", "EINTR"),
    "dup": ("EMFILE",),
    "epoll_create1": ("EMFILE",),
    "epoll_ctl": ("ENOMEM", "ENOSPC", "EPERM"),
    "epoll_wait": ("EINTR", "EBADF"),
    "fallocate": ("EIO", "ENOSPC", "EINTR", "EOPNOTSUPP"),
    "fcntl": ("ENOMEM", "EINVAL"),
    "fstat,newfstatat": ("EIO", "ENOMEM"),
    "fstatfs": ("EIO", "ENOSYS"),
    "getsockopt": ("ENOBUFS",),
    "ioctl": ("ENOMEM",),
    "lseek": ("EIO",),
    "mmap": ("ENOMEM", "EACCES"),
    "munmap": ("ENOMEM",),
    "openat": ("EMFILE", "ENFILE", "EIO"),
    "pidfd_open": ("EMFILE", "ENOSYS"),
    "poll": ("ENOMEM", "EINTR"),
    "pread64": ("EIO", "ENOMEM"),
    "preadv,preadv2": ("EIO", "EAGAIN"),
    "process_madvise": ("EPERM", "ENOMEM", "EIO"),
    "read": ("EIO", "EINTR"),
    "readlink,readlinkat": ("ENOMEM", "EACCES"),
    "recvfrom": ("ENOMEM", "ECONNRESET", "EINTR"),
    "recvmsg": ("ENOBUFS", "ENOMEM", "ECONNRESET"),
    "sendmsg": ("ENOBUFS", "ETOOMANYREFS", "ENOMEM"),
    "sendto": ("ENOBUFS", "EPIPE", "ENOMEM"),
    "setsockopt": ("ENOMEM",),
    "socket,socketpair": ("EMFILE", "ENOBUFS"),
    "write": ("EIO", "ENOSPC", "EAGAIN"),
    "futex": ("ENOMEM",),
    "clone,clone3": ("EAGAIN", "ENOMEM"),
}
PATIENCE: Final = 20.0


@contextmanager
def failing(pid: int, calls: str, error: str, when: str) -> Iterator[None]:
    """One or all of a process's calls fail meanwhile."""
    arguments = ("-qq", "-f", f"--inject={calls}:error={error}:when={when}", f"--trace={calls}")
    command = ["strace", *arguments, "--output=/dev/null", f"--attach={pid}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        try:
            yield
        finally:
            strace.terminate()
            assert strace.stderr is not None
            said = strace.stderr.read().decode()
            assert "attach" not in said or "No such process" in said, said


def is_traced(pid: int) -> bool:
    text = Path(f"/proc/{pid}/status").read_text()
    return "TracerPid:\t0" not in text


async def requests(daemon: Daemon) -> None:
    """All kinds of them. None is wrongly answered; each may be refused, or not answered."""
    with trio.move_on_after(2):
        async with by_hand(daemon.socket, features=None) as guest:
            fill(guest.ram, KEPT.start, len(KEPT))
            try:
                await guest.start()
                await all_requests(guest)
            finally:
                assert is_filled(guest.ram, KEPT.start, len(KEPT))


async def all_requests(guest: ByHand) -> None:
    for number in range(1, 4):
        fill(guest.ram, 32 * MIB, BLOCK)
        assert (await guest.report((32 * MIB, BLOCK))).length in (0, BLOCK)
        page = 40 * MIB // PAGE
        fill(guest.ram, page * PAGE, 3 * PAGE)
        await guest.inflate([page, page + 2])
        assert is_filled(guest.ram, (page + 1) * PAGE, PAGE)
        actual = number.to_bytes(4, "little")
        await guest.front_end.set_config(slice(4, 8), actual)
        assert (await guest.front_end.get_config())[4:8] == actual
        dimm = guest.ram.add(16 * MIB, 1 << 32)
        await guest.front_end.add_region(dimm)
        await guest.front_end.remove_region(dimm)
        guest.ram.remove(dimm)
    bases = await guest.stop()
    for queue in (Queue.INFLATE, Queue.REPORTING):
        assert bases[guest.indexes[queue]] == guest.rings[queue].available_index


async def survives(daemon: Daemon, calls: str, error: str, when: str) -> None:
    """Disturb it; it goes on, or has ended and said why."""
    with failing(daemon.pid, calls, error, when):
        await eventually(lambda: not daemon.running() or is_traced(daemon.pid))
        try:
            await requests(daemon)
            QMPClient(daemon.control, timeout=1).close()
        except* (OSError, BackEndGone, Refused, GuestError, RigTimeout, trio.TooSlowError):
            pass  # its own VM's loss
    if daemon.running():
        try:
            await serves(daemon.socket, PATIENCE)
        except* (OSError, BackEndGone):
            await eventually(lambda: not daemon.running())  # it was about to end
    if not daemon.running():
        assert daemon.status() != 0
        assert "error" in daemon.log().lower() or "Traceback" in daemon.log()


@pytest.mark.skipif(shutil.which("strace") is None, reason="ERROR NUMBERS NOT TESTED: no strace")
@pytest.mark.parametrize("calls", ERRORS)
async def test_system_calls_that_fail(calls: str) -> None:
    need_root("ERROR NUMBERS")
    with neighbour() as beside, ExitStack() as stack:
        daemon = stack.enter_context(hostile())
        for error in ERRORS[calls]:
            for when in ("1", "1+"):
                await survives(daemon, calls, error, when)
                if not daemon.running():
                    daemon = stack.enter_context(hostile())
        await beside.goes_on()
