"""Pinned memory is not discarded: what /proc tells of the front end, and what follows from it."""

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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.rig.fixtures import required
from tests.support.end_to_end import (
    MIB,
    PAGE,
    ByHand,
    Host,
    LogLines,
    by_hand,
    eventually,
    fill,
    is_filled,
    refused,
    serving,
)
from tests.support.hostile.pinning import pinned
from tests.support.huge_pages import need_root
from vhost_balloon.front_end.peer import is_peer, peer_pid
from vhost_balloon.memory.pins import CACHE_SECONDS, PinGuard, PinState

PID = 4711
MEMORY = 64 * MIB


class Proc:
    """A /proc with one process in it."""

    def __init__(self, root: Path, pid: int = PID) -> None:
        self.root = root
        self.folder = root / str(pid)
        (self.folder / "fd").mkdir(parents=True)
        self.says()

    def says(self, *, pinned: int = 0, locked: int = 0) -> None:
        """Write its status; sizes in bytes."""
        (self.folder / "status").write_text(
            f"Name:\tqemu\nVmPeak:\t 9 kB\nVmLck:\t{locked // 1024:8} kB\n"
            f"VmPin:\t{pinned // 1024:8} kB\nThreads:\t3\n"
        )

    def holds(self, *links: str) -> None:
        for number, link in enumerate(links):
            (self.folder / "fd" / str(number)).symlink_to(link)

    def look(self, memory: int = MEMORY) -> PinState:
        return PinGuard(PID, self.root).check(memory, 0.0)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


# What is seen


def test_a_process_with_nothing_pinned(proc: Proc) -> None:
    proc.holds("/dev/kvm", "/dev/vhost-net", "anon_inode:[eventfd]", "/dev/null", "socket:[5]")
    assert proc.look() is PinState.FREE


def test_a_single_pinned_page_is_enough(proc: Proc) -> None:
    proc.says(pinned=PAGE)
    assert proc.look() is PinState.PINNED


def test_locked_memory_counts_from_the_guests_size_on(proc: Proc) -> None:
    """QEMU may lock a little for itself."""
    proc.says(locked=MEMORY - PAGE)
    assert proc.look() is PinState.FREE
    proc.says(locked=MEMORY)
    assert proc.look() is PinState.PINNED


def test_before_the_guests_memory_is_known_locked_memory_says_nothing(proc: Proc) -> None:
    proc.says(locked=PAGE)
    assert proc.look(memory=0) is PinState.FREE


@pytest.mark.parametrize(
    "link",
    ["/dev/vfio/vfio", "/dev/vfio/12", "/dev/vfio/devices/vfio0", "anon_inode:[vfio-device]",
     "anon_inode:[vfio]", "/dev/iommu", "/dev/vhost-vdpa-0", "anon_inode:[iommufd]"],
)  # fmt: skip
def test_a_device_that_pins_is_seen_before_it_has(proc: Proc, link: str) -> None:
    proc.holds("/dev/null", link)
    assert proc.look() is PinState.PINNED


# What is no answer


def test_unreadable_descriptors_are_no_licence(proc: Proc) -> None:
    (proc.folder / "fd").rmdir()
    assert proc.look() is PinState.UNKNOWN
    proc.says(pinned=PAGE)
    assert proc.look() is PinState.PINNED


@pytest.mark.parametrize("call", ["open", "scandir", "readlink"])
@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESRCH, errno.EIO,
               errno.ENOMEM, errno.ELOOP]
)  # fmt: skip
def test_a_system_call_that_fails_is_no_answer(
    proc: Proc, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    proc.holds("/dev/null")
    failing(monkeypatch, call, number)
    guard = PinGuard(PID, proc.root)
    assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN
    assert guard.why.startswith(f"process {PID}: ")
    monkeypatch.undo()
    assert guard.check(MEMORY, CACHE_SECONDS) is PinState.FREE, "it is tried again"
    assert guard.why == ""


def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)


def test_a_descriptor_that_was_closed_meanwhile_says_nothing(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc.holds("/dev/null")
    failing(monkeypatch, "readlink", errno.ENOENT)
    assert proc.look() is PinState.FREE


def test_a_process_that_ends_while_it_is_looked_at(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptors are closed one after the other, and none of them is left at last."""

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
def test_without_a_status_it_cannot_be_told(proc: Proc, status: str | None) -> None:
    proc.says()
    (proc.folder / "status").unlink()
    if status is not None:
        (proc.folder / "status").write_text(status)
    assert proc.look() is PinState.UNKNOWN


def test_a_usual_status_is_told(proc: Proc) -> None:
    (proc.folder / "status").write_text(GOOD)
    assert proc.look() is PinState.FREE


@pytest.mark.parametrize("pid", [None, 0, -1, -PID, PID + 1])
def test_a_process_that_is_not_there_or_cannot_be_named(proc: Proc, pid: int | None) -> None:
    for name in ("0", "-1", f"-{PID}"):
        proc.folder.with_name(name).symlink_to(proc.folder)
    guard = PinGuard(pid, proc.root)
    assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN
    assert guard.why


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert PinGuard(os.getpid(), tmp_path / "no").check(MEMORY, 0.0) is PinState.UNKNOWN


def test_another_process_with_the_number_of_one_that_has_ended(proc: Proc) -> None:
    guard = PinGuard(PID, proc.root)
    assert guard.check(MEMORY, 0.0) is PinState.FREE
    shutil.rmtree(proc.folder)
    Proc(proc.root)
    assert guard.check(MEMORY, CACHE_SECONDS) is PinState.UNKNOWN
    guard.close()


def test_a_number_that_is_not_the_front_ends(proc: Proc) -> None:
    """It has ended, and its number is used again before the first look."""
    assert PinGuard(PID, proc.root, lambda _: False).check(MEMORY, 0.0) is PinState.UNKNOWN


def test_a_look_that_is_too_old_for_the_guests_memory(proc: Proc) -> None:
    """The first look comes before the memory is known, which says what locked memory means."""
    proc.says(locked=MEMORY)
    guard = PinGuard(PID, proc.root)
    assert guard.check(0, 0.0) is PinState.FREE
    assert guard.check(MEMORY, 0.0) is PinState.PINNED


def test_a_look_is_kept_for_a_second_at_most(proc: Proc) -> None:
    guard = PinGuard(PID, proc.root)
    assert guard.check(MEMORY, 100.0) is PinState.FREE
    proc.says(pinned=PAGE)
    assert guard.check(MEMORY, 100.0 + CACHE_SECONDS - 0.01) is PinState.FREE
    assert guard.check(MEMORY, 100.0 + CACHE_SECONDS) is PinState.PINNED
    assert CACHE_SECONDS <= 1


# Real processes


def cannot_pin(reason: str) -> NoReturn:
    """Real pins are required in CI; elsewhere a kernel may forbid io_uring."""
    if required():
        pytest.fail(f"real pins are required here: {reason}")
    pytest.skip(f"REAL PINS NOT TESTED: {reason}")


@contextmanager
def process_that(what: str, size: int) -> Iterator[int]:
    """A process that pins or locks memory, by its id."""
    command = [sys.executable, "-m", "tests.support.hostile.pinning", what, str(size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        said = process.stdout.readline().strip()
        if said != "done":
            process.stdin.close()
            cannot_pin(said)
        yield process.pid
        process.stdin.close()


def test_a_real_process_that_pins() -> None:
    with process_that("pin", 4 * PAGE) as pid:
        assert PinGuard(pid).check(MEMORY, 0.0) is PinState.PINNED


def test_a_real_process_that_locks_its_memory() -> None:
    with process_that("lock", MIB) as pid:
        assert PinGuard(pid).check(MIB, 0.0) is PinState.PINNED
        assert PinGuard(pid).check(2 * MIB, 0.0) is PinState.FREE


def test_this_process_pins_nothing() -> None:
    assert PinGuard(os.getpid()).check(MEMORY, 0.0) is PinState.FREE


def test_a_process_that_has_ended_and_is_not_waited_for() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert PinGuard(process.pid).check(MEMORY, 0.0) is PinState.UNKNOWN


def test_a_kernel_thread() -> None:
    threads = [path for path in Path("/proc").glob("[0-9]*") if is_kernel_thread(path)]
    if not threads:
        pytest.skip("no kernel thread can be seen in this PID namespace")
    guard = PinGuard(int(threads[0].name))
    assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN


def is_kernel_thread(path: Path) -> bool:
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()[1] == "2"  # of kthreadd
    except OSError:
        return False


def seen_by_nobody(pid: int) -> tuple[str, str]:
    """What a process without any right over process pid makes of it, and why."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            guard = PinGuard(pid)
            state = guard.check(MEMORY, 0.0)
            os.write(write_end, f"{state.value}\n{guard.why}".encode())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as answer:
        told, _, why = answer.read().partition("\n")
    return told, why


def test_another_users_process_may_not_be_looked_at() -> None:
    """Its status can be read, and its descriptors cannot: the daemon of the shipped units."""
    need_root("ANOTHER USER'S PROCESS")
    state, why = seen_by_nobody(os.getpid())
    assert state == "pins-unknown"
    assert "another user" in why


@contextmanager
def connection_of_a_child() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process, and our end of the connection that it made; this process holds the other, too."""
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


def test_who_connected_is_told_from_who_has_its_number() -> None:
    with connection_of_a_child() as (process, ours):
        assert peer_pid(ours) == process.pid
        assert is_peer(ours, process.pid)
        assert not is_peer(ours, os.getpid())
        guard = PinGuard(process.pid, is_peer=lambda pid: is_peer(ours, pid))
        assert guard.check(MEMORY, 0.0) is PinState.FREE
        process.kill()
        process.wait()
        assert peer_pid(ours) == process.pid, "a number that another process may have now"
        with suppress(OSError):
            assert not is_peer(ours, process.pid)
        assert guard.check(MEMORY, CACHE_SECONDS) is PinState.UNKNOWN
        guard.close()


@pytest.mark.parametrize(
    ("number", "known"), [(errno.ENOPROTOOPT, True), (errno.EMFILE, False), (errno.ESRCH, False)]
)
def test_a_kernel_that_does_not_know_who_connected(number: int, known: bool) -> None:
    """Before Linux 6.5 the number has to do; any other failure is no answer."""

    class Sock(socket.socket):
        def getsockopt(self, *_: object) -> NoReturn:
            raise OSError(number, os.strerror(number))

    with Sock(socket.AF_UNIX) as sock:
        if known:
            assert is_peer(sock, os.getpid())
            with pytest.raises(ProcessLookupError):
                is_peer(sock, 1 << 22)  # above all that Linux gives
        else:
            with pytest.raises(OSError, match=re.escape(os.strerror(number))):
                is_peer(sock, os.getpid())


# What follows: the daemon and a guest


def played(host: Host, monkeypatch: pytest.MonkeyPatch, root: Path) -> Proc:
    """Have the daemon look at a /proc of ours; the simulator's front end is this process."""
    monkeypatch.setattr(host.vm(), "proc", root)
    return Proc(root, os.getpid())


async def offer(guest: ByHand) -> bool:
    """Report a block and inflate a page, both in use before; whether they were discarded."""
    block, page = guest.ram.regions[0].start + 32 * MIB, guest.ram.regions[0].end - PAGE
    for _ in range(2):
        fill(guest.ram, block, 4 * MIB)
        fill(guest.ram, page, PAGE)
        await guest.report((block, 4 * MIB))
        await guest.inflate([page // PAGE])
        kept = is_filled(guest.ram, block, 4 * MIB)
        if is_filled(guest.ram, page, PAGE) == kept:
            return not kept
        # The look grew old between the two; the next one counts for both of a second round.
    raise AssertionError("one of the two was discarded and the other was not")


OFFERED = 4 * MIB + PAGE


async def test_nothing_of_a_front_end_that_pins_is_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host:
        proc = played(host, monkeypatch, tmp_path / "proc")
        proc.says(pinned=PAGE)
        async with by_hand(host.path()) as guest:
            assert not await offer(guest)
            assert refused(host.vm()) == {"pinned": OFFERED}
            assert host.vm().counters.freed_bytes == 0
            statistics = host.vm().statistics()
            assert (statistics.reporting_paused, statistics.pause_reasons) == (True, ("pinned",))
    assert len(log_lines.having("warning", "vm1", "has memory pinned for a device")) == 1


async def test_what_cannot_be_told_is_no_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host:
        proc = played(host, monkeypatch, tmp_path / "proc")
        (proc.folder / "fd").rmdir()
        async with by_hand(host.path(), features=None) as guest:
            await eventually(lambda: host.vm().attached)
            assert paused(host) == ("pins-unknown",), "before any request"
            await guest.start()
            assert not await offer(guest)
            assert refused(host.vm()) == {"pins-unknown": OFFERED}
            assert paused(host) == ("pins-unknown",)
    (line,) = log_lines.having("warning", "vm1", "nothing is discarded")
    assert "it has ended, or /proc does not show it" in line
    assert "if no device is passed through to the guest" in line
    assert "--discard=always" in line


def paused(host: Host) -> tuple[str, ...]:
    return host.vm().statistics().pause_reasons


async def test_a_front_end_without_pins_is_not_worth_a_line(
    tmp_path: Path, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        assert await offer(guest)
        assert paused(host) == ()
    assert log_lines.having("warning") == []


async def test_always_discards_without_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, "--discard=always") as host:
        played(host, monkeypatch, tmp_path / "proc").says(pinned=PAGE)
        async with by_hand(host.path()) as guest:
            assert await offer(guest)
            assert refused(host.vm()) == {}
            assert host.vm().counters.freed_bytes == OFFERED
            assert not host.vm().statistics().reporting_paused


async def test_never_discards_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, "--discard=never") as host, by_hand(host.path()) as guest:
        assert not await offer(guest)
        assert refused(host.vm()) == {"discard-never": OFFERED}
        assert host.vm().counters.freed_bytes == 0
        assert host.vm().statistics().pause_reasons == ("discard-never",)


async def test_a_device_that_is_plugged_in_and_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at again before discards, a second after the last time."""
    async with serving(tmp_path) as host:
        proc = played(host, monkeypatch, tmp_path / "proc")
        async with by_hand(host.path()) as guest:
            assert await offer(guest)
            proc.says(pinned=PAGE)
            await look_again(guest, discarded=False)
            proc.says()
            await look_again(guest, discarded=True)


async def look_again(guest: ByHand, *, discarded: bool) -> None:
    """Offer until the last look has grown old."""
    while await offer(guest) != discarded:
        pass


async def test_real_pins_of_a_real_front_end(tmp_path: Path) -> None:
    """This process is the front end, and has io_uring pin a page for as long as it says."""
    async with serving(tmp_path) as host:
        with ExitStack() as stack:
            try:
                stack.enter_context(pinned(PAGE))
            except OSError as error:
                cannot_pin(str(error))
            async with by_hand(host.path()) as guest:
                assert not await offer(guest)
                assert refused(host.vm()) == {"pinned": OFFERED}
        await eventually(lambda: PinGuard(os.getpid()).check(MEMORY, 0.0) is PinState.FREE)
        await eventually(lambda: not host.vm().attached)
        async with by_hand(host.path()) as guest:
            assert await offer(guest)


def test_of_a_process_with_too_many_descriptors_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhost_balloon.memory.pins.MAX_DESCRIPTORS", 3)
    proc = Proc(tmp_path)
    proc.holds(*["/dev/null"] * 3)
    assert proc.look() is PinState.FREE
    (proc.folder / "fd" / "3").symlink_to("/dev/null")
    assert proc.look() is PinState.UNKNOWN
