"""Whether the front end has memory pinned, as /proc tells: made-up and real processes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.helpers import MIB, PAGE
from tests.support.huge_pages import need_root
from tests.support.made_up_proc import MEMORY, PID, Proc, process_that, seen_by_nobody
from vhost_balloon.front_end.peer import is_peer, peer_pid
from vhost_balloon.memory.pin_guard import CACHE_SECONDS, PinGuard
from vhost_balloon.memory.pins import PinState


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


# Answers


def test_a_process_with_nothing_pinned(proc: Proc) -> None:
    proc.holds("/dev/kvm", "/dev/vhost-net", "anon_inode:[eventfd]", "/dev/null", "socket:[5]")
    assert proc.look() is PinState.FREE


def test_a_single_pinned_page_is_enough(proc: Proc) -> None:
    proc.says(pinned=PAGE)
    assert proc.look() is PinState.PINNED


def test_locked_memory_counts_if_it_is_as_large_as_the_guest(proc: Proc) -> None:
    """QEMU may lock some memory for itself."""
    proc.says(locked=MEMORY - PAGE)
    assert proc.look() is PinState.FREE
    proc.says(locked=MEMORY)
    assert proc.look() is PinState.PINNED


def test_locked_memory_means_nothing_before_the_guests_size_is_known(proc: Proc) -> None:
    proc.says(locked=PAGE)
    assert proc.look(memory=0) is PinState.FREE


@pytest.mark.parametrize(
    "link",
    ["/dev/vfio/vfio", "/dev/vfio/12", "/dev/vfio/devices/vfio0", "anon_inode:[vfio-device]",
     "anon_inode:[vfio]", "/dev/iommu", "/dev/vhost-vdpa-0", "anon_inode:[iommufd]"],
)  # fmt: skip
def test_a_device_that_pins_counts_before_it_has_pinned_anything(proc: Proc, link: str) -> None:
    proc.holds("/dev/null", link)
    assert proc.look() is PinState.PINNED


# No answer


def test_with_unreadable_descriptors_the_state_is_unknown(proc: Proc) -> None:
    (proc.folder / "fd").rmdir()
    assert proc.look() is PinState.UNKNOWN
    proc.says(pinned=PAGE)
    assert proc.look() is PinState.PINNED


@pytest.mark.parametrize("call", ["open", "scandir", "readlink"])
@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESRCH, errno.EIO,
               errno.ENOMEM, errno.ELOOP]
)  # fmt: skip
def test_after_a_failed_system_call_the_state_is_unknown(
    proc: Proc, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    proc.holds("/dev/null")
    failing(monkeypatch, call, number)
    guard = PinGuard(PID, proc.root)
    assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN
    assert guard.why.startswith(f"process {PID}: ")
    monkeypatch.undo()
    assert guard.check(MEMORY, CACHE_SECONDS) is PinState.FREE, "the next look did not try again"
    assert guard.why == ""


def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)


def test_a_descriptor_that_was_closed_meanwhile_is_ignored(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc.holds("/dev/null")
    failing(monkeypatch, "readlink", errno.ENOENT)
    assert proc.look() is PinState.FREE


def test_a_process_that_ends_during_the_look(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes its descriptors one after the other, until none is left."""

    def closed(*_: object, **__: object) -> NoReturn:
        (proc.folder / "status").write_text("Name:\tqemu\nState:\tZ (zombie)\n")
        raise FileNotFoundError(errno.ENOENT, "")

    proc.holds("/dev/vfio/12")
    monkeypatch.setattr(os, "readlink", closed)
    assert proc.look() is PinState.UNKNOWN


GOOD = "VmLck:\t       0 kB\nVmPin:\t       0 kB\n"


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(None, id="no file"),
        *("", "VmPin:\t0 kB\n", "VmLck:\t0 kB\n", GOOD.replace("0 kB", "x kB")),
        *(GOOD.replace("0 kB", odd) for odd in ("0", "-4 kB", "0 MB", "0x0 kB", "\u0660 kB", "kB")),
        *(
            GOOD + GOOD,
            GOOD.replace("Vm", "vm"),
            GOOD.replace("Vm", " Vm"),
            GOOD + "VmPin:\t4 kB\n",
        ),
        pytest.param("Groups:\t" + "1000000 " * 10_000 + "\n" + GOOD, id="endless"),
    ],
)
def test_without_a_valid_status_the_state_is_unknown(proc: Proc, status: str | None) -> None:
    proc.says()
    (proc.folder / "status").unlink()
    if status is not None:
        (proc.folder / "status").write_text(status)
    assert proc.look() is PinState.UNKNOWN


def test_a_valid_status_is_an_answer(proc: Proc) -> None:
    (proc.folder / "status").write_text(GOOD)
    assert proc.look() is PinState.FREE


@pytest.mark.parametrize("pid", [None, 0, -1, -PID, PID + 1])
def test_a_process_that_does_not_exist_or_is_not_known(proc: Proc, pid: int | None) -> None:
    for name in ("0", "-1", f"-{PID}"):
        proc.folder.with_name(name).symlink_to(proc.folder)
    guard = PinGuard(pid, proc.root)
    assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN
    assert guard.why


def test_without_proc_the_state_is_unknown(tmp_path: Path) -> None:
    assert PinGuard(os.getpid(), tmp_path / "no").check(MEMORY, 0.0) is PinState.UNKNOWN


def test_another_process_with_the_pid_of_one_that_has_ended(proc: Proc) -> None:
    guard = PinGuard(PID, proc.root)
    assert guard.check(MEMORY, 0.0) is PinState.FREE
    shutil.rmtree(proc.folder)
    Proc(proc.root)
    assert guard.check(MEMORY, CACHE_SECONDS) is PinState.UNKNOWN
    guard.close()


def test_a_pid_that_is_not_the_front_ends(proc: Proc) -> None:
    """The front end has ended, and its PID is in use again before the first look."""
    assert PinGuard(PID, proc.root, lambda _: False).check(MEMORY, 0.0) is PinState.UNKNOWN


def test_a_new_size_of_the_guests_memory_causes_a_new_look(proc: Proc) -> None:
    """The first look comes before that size is known, which decides what locked memory means."""
    proc.says(locked=MEMORY)
    guard = PinGuard(PID, proc.root)
    assert guard.check(0, 0.0) is PinState.FREE
    assert guard.check(MEMORY, 0.0) is PinState.PINNED


def test_a_state_is_kept_for_a_second_at_most(proc: Proc) -> None:
    guard = PinGuard(PID, proc.root)
    assert guard.check(MEMORY, 100.0) is PinState.FREE
    proc.says(pinned=PAGE)
    assert guard.check(MEMORY, 100.0 + CACHE_SECONDS - 0.01) is PinState.FREE
    assert guard.check(MEMORY, 100.0 + CACHE_SECONDS) is PinState.PINNED
    assert CACHE_SECONDS <= 1


def test_with_too_many_descriptors_the_state_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhost_balloon.memory.pins.MAX_DESCRIPTORS", 3)
    proc = Proc(tmp_path)
    proc.holds(*["/dev/null"] * 3)
    assert proc.look() is PinState.FREE
    (proc.folder / "fd" / "3").symlink_to("/dev/null")
    assert proc.look() is PinState.UNKNOWN


# Real processes


def test_a_real_process_that_pins() -> None:
    with process_that("pin", 4 * PAGE) as pid:
        assert PinGuard(pid).check(MEMORY, 0.0) is PinState.PINNED


def test_a_real_process_that_locks_its_memory() -> None:
    with process_that("lock", MIB) as pid:
        assert PinGuard(pid).check(MIB, 0.0) is PinState.PINNED
        assert PinGuard(pid).check(2 * MIB, 0.0) is PinState.FREE


def test_this_process_pins_nothing() -> None:
    assert PinGuard(os.getpid()).check(MEMORY, 0.0) is PinState.FREE


def test_a_zombie() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert PinGuard(process.pid).check(MEMORY, 0.0) is PinState.UNKNOWN


def test_a_kernel_thread() -> None:
    threads = [path for path in Path("/proc").glob("[0-9]*") if is_kernel_thread(path)]
    if not threads:
        pytest.skip("this PID namespace shows no kernel thread")
    guard = PinGuard(int(threads[0].name))
    assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN


def is_kernel_thread(path: Path) -> bool:
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()[1] == "2"  # of kthreadd
    except OSError:
        return False


def test_another_users_process_is_unknown() -> None:
    """Its status is readable, its descriptors are not: so it is for the shipped units' daemon."""
    need_root("ANOTHER USER'S PROCESS")
    state, why = seen_by_nobody(os.getpid())
    assert state == "pins-unknown"
    assert "another user" in why


@contextmanager
def connection_of_a_child() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process, and our end of its connection. This process also holds the other end."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/sock"
        listener.bind(path)
        listener.listen()
        with socket.socket(socket.AF_UNIX) as end:
            program = f"import socket; socket.socket(fileno=0).connect({path!r})"
            waits = f"{program}; import time; time.sleep(1000)"
            with subprocess.Popen([sys.executable, "-c", waits], stdin=end.fileno()) as process:
                ours, _ = listener.accept()
                with ours:
                    try:
                        yield process, ours
                    finally:
                        process.kill()


def test_the_peer_is_told_apart_from_a_later_process_with_its_pid() -> None:
    with connection_of_a_child() as (process, ours):
        assert peer_pid(ours) == process.pid
        assert is_peer(ours, process.pid)
        assert not is_peer(ours, os.getpid())
        guard = PinGuard(process.pid, is_peer=lambda pid: is_peer(ours, pid))
        assert guard.check(MEMORY, 0.0) is PinState.FREE
        process.kill()
        process.wait()
        assert peer_pid(ours) == process.pid, "the kernel forgot the PID, which may be in use again"
        with suppress(OSError):
            assert not is_peer(ours, process.pid)
        assert guard.check(MEMORY, CACHE_SECONDS) is PinState.UNKNOWN
        guard.close()


@pytest.mark.parametrize(
    ("number", "known"), [(errno.ENOPROTOOPT, True), (errno.EMFILE, False), (errno.ESRCH, False)]
)
def test_a_kernel_that_cannot_identify_the_peer(number: int, known: bool) -> None:
    """Before Linux 6.5 the PID must suffice; any other failure leaves it unknown."""

    class Sock(socket.socket):
        def getsockopt(self, *_: object) -> NoReturn:
            raise OSError(number, os.strerror(number))

    with Sock(socket.AF_UNIX) as sock:
        if known:
            assert is_peer(sock, os.getpid())
            with pytest.raises(ProcessLookupError):
                is_peer(sock, 1 << 22)  # above any PID of Linux
        else:
            with pytest.raises(OSError, match=re.escape(os.strerror(number))):
                is_peer(sock, os.getpid())
