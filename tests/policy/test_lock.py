"""One policy decides on a host."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhost_balloon.policy.lock import FILE, PolicyLock


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[PolicyLock]:
    lock = PolicyLock([tmp_path])
    yield lock
    lock.release()


def test_a_second_one_learns_who_holds_it_and_takes_over(tmp_path: Path, lock: PolicyLock) -> None:
    second = PolicyLock([tmp_path])
    assert lock.try_take() is None
    assert lock.try_take() is None, "it is kept"
    said = second.try_take()
    holder = f"another hub (process {os.getpid()})"
    assert said == f"{holder} decides on this host: it has locked {tmp_path / FILE}"
    lock.release()
    assert second.try_take() is None
    assert lock.try_take() is not None
    second.release()


def test_it_goes_with_its_process(tmp_path: Path, lock: PolicyLock) -> None:
    text = (
        "import sys, pathlib; from vhost_balloon.policy.lock import PolicyLock\n"
        "lock = PolicyLock([pathlib.Path(sys.argv[1])])\n"
        "print(lock.try_take(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "None\n"
        said = lock.try_take()
        assert said is not None
        assert said.startswith(f"another hub (process {other.pid}) ")
        other.kill()
        other.wait()
    assert lock.try_take() is None


@pytest.mark.parametrize("text", [None, "", "1: POSIX ADVISORY\n2: FLOCK\n\n3: FLOCK a b c d\n"])
def test_the_list_of_locks_may_be_hidden(
    tmp_path: Path, lock: PolicyLock, text: str | None
) -> None:
    locks = tmp_path / "locks"
    if text is not None:
        locks.write_text(text)
    assert lock.try_take() is None
    said = PolicyLock([tmp_path], locks).try_take()
    assert said is not None
    assert said.startswith("another hub decides on this host")


def test_all_folders_or_none(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    both, second, first = PolicyLock(folders), PolicyLock(folders[1:]), PolicyLock(folders[:1])
    assert second.try_take() is None
    assert both.try_take() is not None
    assert first.try_take() is None, "the first folder was not kept"
    first.release()
    second.release()
    assert both.try_take() is None
    assert first.try_take() is not None
    assert second.try_take() is not None
    both.release()


def test_a_missing_folder_is_a_problem_until_it_is_there(tmp_path: Path) -> None:
    lock = PolicyLock([tmp_path / "run"])
    said = lock.try_take()
    assert said is not None
    assert "No such file or directory; systemd-tmpfiles" in said
    (tmp_path / "run").mkdir()
    assert lock.try_take() is None
    lock.release()


def test_it_needs_only_to_read_the_file(tmp_path: Path, lock: PolicyLock) -> None:
    """Root, who may write anything, tests this as well as anybody."""
    (tmp_path / FILE).touch()
    assert lock.try_take() is None
    opened = [
        fcntl.fcntl(int(fd), fcntl.F_GETFL) & os.O_ACCMODE
        for fd in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{fd}") == str(tmp_path / FILE)
    ]
    assert opened == [os.O_RDONLY]


def test_the_file_that_is_made_is_not_for_everybody(tmp_path: Path, lock: PolicyLock) -> None:
    lock.try_take()
    assert (tmp_path / FILE).stat().st_mode & 0o137 == 0


def test_a_file_that_was_replaced_is_locked_anew(tmp_path: Path, lock: PolicyLock) -> None:
    """Otherwise a second policy could lock the new file."""
    assert lock.try_take() is None
    for replace in (True, False):
        (tmp_path / FILE).unlink()
        if replace:
            (tmp_path / FILE).touch()
        assert lock.try_take() is None
        assert PolicyLock([tmp_path]).try_take() is not None
    (tmp_path / FILE).unlink()
    faster = PolicyLock([tmp_path])
    assert faster.try_take() is None
    assert lock.try_take() is not None
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
    said = PolicyLock([tmp_path]).try_take()
    assert said is not None
    assert str(path) in said
    assert "\n" not in said
    assert not (tmp_path / "nothing").exists()
    assert len(os.listdir("/proc/self/fd")) == before
