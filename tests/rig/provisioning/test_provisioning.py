"""Provisioning the rig: every tree is complete, in any order and after any failure."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.rig.errors import RigUnavailable
from tests.rig.provisioning import packages
from tests.rig.provisioning.packages import Tree, provision
from tests.support.fakes.debian import (
    EMULATOR,
    HOLDS,
    INIT,
    KERNEL,
    READER,
    SERVER,
    TREES,
    FakeDebian,
    archives,
)
from tests.support.paths import ROOT

SHARING = (EMULATOR, INIT, READER, SERVER)
"""Each shares packages with the others."""


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDebian:
    """A fake archive for apt, and an empty cache folder."""
    debian = FakeDebian(tmp_path)
    for name, value in debian.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tests.rig.provisioning.packages.debian_archives", archives)
    return debian


def assert_whole(trees: Sequence[Tree]) -> None:
    """Check that the trees exist with exactly the contents of their packages."""
    for tree in trees:
        assert tree.is_there(), tree.name
        assert set(tree.versions()) == HOLDS[tree], tree.name
        assert {path.name for path in (tree.folder / "usr").iterdir()} == HOLDS[tree], tree.name
    cache = packages.cache_folder()
    assert {path.name for path in cache.iterdir()} <= {"lock", "trees"}
    assert {path.name for path in (cache / "trees").iterdir()} == {t.folder.name for t in trees}


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize(
    "order",
    list(itertools.permutations(SHARING)),
    ids=lambda order: " ".join(tree.name for tree in order),
)
def test_trees_are_whole_in_any_order(order: tuple[Tree, ...], tmp_path: Path) -> None:
    provision(order)
    assert_whole(order)
    for tree in order:
        tree.folder.rename(tmp_path / tree.name)
        provision((tree,))
    assert_whole(order)


@pytest.mark.usefixtures("debian")
def test_a_version_is_as_debian_writes_it() -> None:
    provision((KERNEL,))
    assert KERNEL.versions() == {"image-1": "1:2"}


def test_nothing_is_fetched_again(debian: FakeDebian) -> None:
    provision((READER,))
    made = READER.folder.stat().st_ino
    assert debian.calls()
    provision((READER,))
    assert debian.calls() == []
    provision(TREES)
    assert READER.folder.stat().st_ino == made
    assert not any("reader" in call for call in debian.calls())


@pytest.mark.usefixtures("debian")
def test_backports_are_for_the_tree_that_asks_for_them() -> None:
    backported = Tree("backported", ("kernel",), backports=("kernel",), meta="image-")
    provision((backported, KERNEL))
    assert (set(backported.versions()), set(KERNEL.versions())) == ({"image-2"}, {"image-1"})


# What goes wrong


def provisioned_apart(debian: FakeDebian, **environment: str) -> int:
    """Provision everything in a separate process; return its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "tests.support.fakes.debian", *(tree.name for tree in TREES)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        check=False,
    ).returncode


def test_a_provisioning_that_is_killed_at_any_step_costs_nothing(debian: FakeDebian) -> None:
    """Kill it repeatedly, one step later each time, until it reaches its end."""
    made: dict[Tree, int] = {}
    for step in itertools.count(1):
        debian.calls()
        status = provisioned_apart(debian, KILL_AT=str(step))
        for tree, inode in made.items():
            assert tree.folder.stat().st_ino == inode, "an existing tree was made again"
        made = {tree: tree.folder.stat().st_ino for tree in TREES if tree.is_there()}
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert step > 5
    assert_whole(TREES)


def test_after_a_kill_the_rest_is_made_in_one_go(debian: FakeDebian) -> None:
    provisioned_apart(debian)
    steps = len(debian.calls())
    for tree in TREES:
        tree.folder.rename(packages.cache_folder().with_name(tree.name))
    assert provisioned_apart(debian, KILL_AT=str(steps // 2)) == -signal.SIGKILL
    assert not all(tree.is_there() for tree in TREES)
    provision(TREES)
    assert_whole(TREES)


def test_two_at_a_time_do_the_work_of_one(debian: FakeDebian) -> None:
    command = [sys.executable, "-m", "tests.support.fakes.debian", *(tree.name for tree in TREES)]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in "12"]
    assert [process.wait(60) for process in both] == [0, 0]
    assert_whole(TREES)
    assert debian.calls().count("apt-get update -o APT::Update::Error-Mode=any") == 1


@pytest.mark.parametrize(
    "order",
    list(itertools.permutations((EMULATOR, READER, SERVER))),
    ids=lambda order: " ".join(tree.name for tree in order),
)
def test_a_tree_that_cannot_be_had_costs_no_other(
    debian: FakeDebian, order: tuple[Tree, ...]
) -> None:
    debian.set("reader", "broken")
    with pytest.raises(RigUnavailable) as caught:
        provision(order)
    assert caught.value.by_tree.keys() == {"reader"}
    assert caught.value.reason.startswith("reader: unpacking reader_1%3a2_amd64.deb failed")
    assert_whole([EMULATOR, SERVER])
    debian.set("reader", "broken", False)
    debian.calls()
    provision(order)
    assert_whole(order)
    assert not any("emulator" in call or "server" in call for call in debian.calls())


@pytest.mark.parametrize(
    ("tree", "package"), [(SERVER, "libc"), (INIT, "init"), (INIT, "libz"), (KERNEL, "image-1")]
)
def test_a_package_that_apt_does_not_fetch_is_missed(
    debian: FakeDebian, tree: Tree, package: str
) -> None:
    debian.set(package, "forgotten")
    with pytest.raises(RigUnavailable, match=f"{tree.name}: apt did not fetch {package}"):
        provision((tree,))
    assert not tree.folder.exists()


def test_a_package_that_is_not_there_any_more_is_missed(debian: FakeDebian) -> None:
    with pytest.raises(RigUnavailable, match=r"gone: apt-get .* Unable to locate package gone"):
        provision((Tree("gone", ("gone",)), READER))
    assert_whole([READER])


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize("lost", ["rig-stamp.json", "usr/libz"])
def test_a_tree_that_was_removed_in_part_is_made_anew(lost: str) -> None:
    provision((READER,))
    (READER.folder / lost).unlink()
    provision((READER,))
    assert_whole([READER])


@pytest.mark.usefixtures("debian")
def test_a_link_that_leads_nowhere_is_no_file() -> None:
    provision((READER,))
    libz = READER.folder / "usr/libz"
    libz.unlink()
    libz.symlink_to("libz.1")
    assert not READER.is_there()


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize("in_the_way", ["cache", "cache/lock", "cache/trees"])
def test_a_cache_folder_that_cannot_be_used_is_a_reason(tmp_path: Path, in_the_way: str) -> None:
    path = tmp_path / in_the_way
    path.parent.mkdir(exist_ok=True)
    if in_the_way.endswith("lock"):
        path.mkdir()
    else:
        path.touch()
    with pytest.raises(RigUnavailable, match=str(path)):
        provision((READER,))


# Tests that need the rig

TESTS = """
import pytest
from tests.support.fakes.debian import EMULATOR, READER, SERVER

@pytest.mark.rig(EMULATOR, SERVER)
def test_of_two_trees():
    assert EMULATOR.is_there() and SERVER.is_there()

@pytest.mark.rig(READER)
def test_of_another_tree():
    assert READER.is_there()

def test_of_none():
    pass
"""
CONFTEST = """
from tests.support.fakes import debian
from tests.rig.provisioning import packages
from tests.rig.fixtures import *

packages.debian_archives = debian.archives
"""


def run_tests(
    folder: Path,
    *options: str,
    required: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, str]:
    """Run three tests of the rig in a separate process; return its output."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = rig\nfilterwarnings = error\n")
    wanted = {"PYTEST_ADDOPTS": "", "CI": "", "VHOST_BALLOON_REQUIRE_RIG": "1" if required else ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_it.py"],
        cwd=folder,
        env=os.environ | wanted | {"PYTHONPATH": str(ROOT)} | dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout, done.stderr


WORKERS = pytest.mark.parametrize("workers", [0, 2])
"""Of pytest-xdist, each of which needs all trees."""


@WORKERS
@pytest.mark.usefixtures("debian")
def test_who_waits_for_a_test_sees_what_is_fetched_for_it(tmp_path: Path, workers: int) -> None:
    assert "rig:" not in "".join(run_tests(tmp_path, "--collect-only"))
    out, err = run_tests(tmp_path, f"-n{workers}")
    assert "3 passed" in out
    lines = [line.partition(" (")[0] for line in err.splitlines()]
    waiting = "rig: waiting for another provisioning to finish"
    assert lines.count(waiting) <= max(workers - 1, 0)
    assert [line for line in lines if line != waiting] == [
        "rig: reading the package index of the host's Debian archive",
        "rig: fetching emulator",
        "rig: emulator ready: 3 packages, 0.6 MB",
        "rig: fetching server",
        "rig: server ready: 2 packages, 0.4 MB",
        "rig: fetching reader",
        "rig: reader ready: 3 packages, 0.6 MB",
        f"rig: fetched 8 packages, 1.6 MB in all, for {tmp_path}/cache",
    ]
    assert "rig:" not in "".join(run_tests(tmp_path))


@WORKERS
@pytest.mark.parametrize("required", [False, True])
def test_what_cannot_be_had_concerns_only_who_needs_it(
    debian: FakeDebian, tmp_path: Path, required: bool, workers: int
) -> None:
    debian.set("server", "broken")
    out, err = run_tests(tmp_path, f"-n{workers}", required=required)
    assert ("2 passed, 1 error" if required else "2 passed, 1 skipped") in out
    assert "rig: server cannot be had: unpacking server_1%3a2_amd64.deb failed" in err
    assert ("server cannot be provisioned on this machine: unpacking server" in out) is not required
    assert "emulator cannot be" not in out
    updates = [call for call in debian.calls() if call.startswith("apt-get update")]
    assert len(updates) == max(workers, 1), "each process must try to provision only once"


@WORKERS
@pytest.mark.usefixtures("debian")
def test_a_reason_for_all_is_said_once(tmp_path: Path, workers: int) -> None:
    (tmp_path / "bin/apt-cache").unlink()
    only = {"PATH": f"{tmp_path}/bin"}
    out, err = run_tests(tmp_path, f"-n{workers}", environment=only)
    assert ("1 passed, 2 skipped" in out, err) == (True, "")
    assert (
        out.count("reader cannot be provisioned on this machine: needs apt-cache (a Debian host)")
        == 1
    )
