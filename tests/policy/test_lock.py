"""One policy decides on a host."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from vhost_balloon import threads
from vhost_balloon.policy.lock import FILE, HANGS, REMEDY, PolicyLock


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[PolicyLock]:
    lock = PolicyLock([tmp_path])
    yield lock
    lock.release()


def take(lock: PolicyLock) -> str | None:
    return trio.run(lock.try_take)


def is_partial(lock: PolicyLock) -> bool:
    return lock.is_partial


def test_a_second_one_learns_who_holds_it_and_takes_over(tmp_path: Path, lock: PolicyLock) -> None:
    second = PolicyLock([tmp_path])
    assert take(lock) is None
    assert take(lock) is None, "it is kept"
    said = take(second)
    holder = f"another hub (process {os.getpid()})"
    assert said == f"{holder} decides on this host: it has locked {tmp_path / FILE}"
    lock.release()
    assert take(second) is None
    assert take(lock) is not None
    second.release()


def test_it_goes_with_its_process(tmp_path: Path, lock: PolicyLock) -> None:
    text = (
        "import sys, pathlib, trio; from vhost_balloon.policy.lock import PolicyLock\n"
        "lock = PolicyLock([pathlib.Path(sys.argv[1])])\n"
        "print(trio.run(lock.try_take), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "None\n"
        said = take(lock)
        assert said is not None
        assert said.startswith(f"another hub (process {other.pid}) ")
        other.kill()
        other.wait()
    assert take(lock) is None


@pytest.mark.parametrize("text", [None, "", "1: POSIX ADVISORY\n2: FLOCK\n\n3: FLOCK a b c d\n"])
def test_the_list_of_locks_may_be_hidden(
    tmp_path: Path, lock: PolicyLock, text: str | None
) -> None:
    locks = tmp_path / "locks"
    if text is not None:
        locks.write_text(text)
    assert take(lock) is None
    said = take(PolicyLock([tmp_path], locks))
    assert said is not None
    assert said.startswith("another hub decides on this host")


def test_all_folders_or_none(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    both, second, first = PolicyLock(folders), PolicyLock(folders[1:]), PolicyLock(folders[:1])
    assert take(second) is None
    assert take(both) is not None
    assert take(first) is None, "the first folder was not kept"
    first.release()
    second.release()
    assert take(both) is None
    assert take(first) is not None
    assert take(second) is not None
    both.release()


def test_a_folder_that_is_missing_is_locked_once_it_is_there(tmp_path: Path) -> None:
    """Without a folder there are no VMs, so it does not keep the others' from being helped."""
    here, there = tmp_path / "here", tmp_path / "there"
    lock, second = PolicyLock([here, there]), PolicyLock([there])
    said = take(lock)
    assert said == f"there is no folder of control sockets ({here}, {there}){REMEDY}"
    here.mkdir()
    assert take(lock) is None
    assert is_partial(lock)
    assert take(PolicyLock([here])) is not None
    there.mkdir()
    assert take(second) is None
    assert take(lock) is not None, "another hub was faster"
    second.release()
    assert take(lock) is None
    assert not is_partial(lock)
    assert take(second) is not None
    shutil.rmtree(there)
    assert take(lock) is None
    assert is_partial(lock)
    lock.release()


@pytest.mark.parametrize("is_later", [False, True])
@pytest.mark.parametrize("order", [1, -1])
def test_two_paths_of_one_folder(tmp_path: Path, order: int, *, is_later: bool) -> None:
    """Such as /run and /var/run."""
    real, link = tmp_path / "run", tmp_path / "link"
    real.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    lock, other = PolicyLock([real, link][::order]), PolicyLock([real])
    if is_later:
        assert take(lock) is None
    link.symlink_to("run")
    for _ in range(2):
        assert take(lock) is None
        assert not lock.is_partial
        assert len(os.listdir("/proc/self/fd")) == before + 1
        assert take(other) is not None
        (real / FILE).unlink()
    assert take(lock) is None
    link.unlink()
    assert take(lock) is None
    assert take(other) is not None, "it is held by the other path"
    lock.release()
    assert take(other) is None
    other.release()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_file_system_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held stays held, and what a call finds that was given up is let go."""
    monkeypatch.setattr(threads, "PATIENCE", 0.2)
    lock, other, going = PolicyLock([tmp_path]), PolicyLock([tmp_path]), threading.Event()

    def hang(*given: Any, **options: Any) -> int:
        going.wait(30)
        return real_open(*given, **options)

    real_open = os.open
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", hang)
        for _ in range(2):
            assert await lock.try_take() == HANGS
        lock.release()
        going.set()
    with trio.fail_after(20):
        while await other.try_take() is not None:
            pass  # the call that was given up has it for a moment
    other.release()
    going.clear()
    assert await lock.try_take() is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *_, **__: going.wait(30))
        assert await lock.try_take() is None
        lock.is_partial = True
        assert await lock.try_take() == HANGS, "VMs may lie in a folder that is not locked"
        going.set()


def test_it_needs_only_to_read_the_file(tmp_path: Path, lock: PolicyLock) -> None:
    """Root, who may write anything, tests this as well as anybody."""
    (tmp_path / FILE).touch()
    assert take(lock) is None
    opened = [
        fcntl.fcntl(int(fd), fcntl.F_GETFL) & os.O_ACCMODE
        for fd in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{fd}") == str(tmp_path / FILE)
    ]
    assert opened == [os.O_RDONLY]


def test_the_file_that_is_made_is_not_for_everybody(tmp_path: Path, lock: PolicyLock) -> None:
    take(lock)
    assert (tmp_path / FILE).stat().st_mode & 0o137 == 0


def test_a_file_that_was_replaced_is_locked_anew(tmp_path: Path, lock: PolicyLock) -> None:
    """Otherwise a second policy could lock the new file."""
    assert take(lock) is None
    for replace in (True, False):
        (tmp_path / FILE).unlink()
        if replace:
            (tmp_path / FILE).touch()
        assert take(lock) is None
        assert take(PolicyLock([tmp_path])) is not None
    (tmp_path / FILE).unlink()
    faster = PolicyLock([tmp_path])
    assert take(faster) is None
    assert take(lock) is not None
    faster.release()


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder", "socket"])
@pytest.mark.timeout(10)
def test_odd_files_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    path, before = tmp_path / FILE, len(os.listdir("/proc/self/fd"))
    if kind == "link":
        (tmp_path / "real").touch()
        path.symlink_to("real")
    elif kind == "dangling":
        path.symlink_to("nothing")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o140600)
    said = take(PolicyLock([tmp_path]))
    assert said is not None
    assert str(path) in said
    assert "\n" not in said
    assert not (tmp_path / "nothing").exists()
    assert len(os.listdir("/proc/self/fd")) == before
