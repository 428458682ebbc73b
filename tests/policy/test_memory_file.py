"""The policy's memory survives a restart of the hub, and never stops it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.end_to_end import LogLines
from vhost_balloon.policy.memory import VmMemory
from vhost_balloon.policy.memory_file import FILE, MAX_FILE, VERSION, MemoryFile

NOW = 5000.0
KNOWN = {
    "web1": VmMemory("1:2", 5, 6, sampled=4990.0, size=9, actual=8, target=7, held_until=5200.0),
    "db.prod": VmMemory("3:4", faults=12, moving_since=4000.0, moving_from=3, distress=True),
}


def test_memory_comes_back(tmp_path: Path, log_lines: LogLines) -> None:
    MemoryFile(tmp_path).write(NOW, KNOWN, urgent=True)
    assert MemoryFile(tmp_path).read(NOW) == KNOWN
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path) == [FILE]
    assert log_lines.lines == []


def test_a_release_that_is_under_way_comes_back(tmp_path: Path, log_lines: LogLines) -> None:
    for releasing in (True, False):
        MemoryFile(tmp_path).write(NOW, KNOWN, urgent=True, releasing=releasing)
        file = MemoryFile(tmp_path)
        assert file.read(NOW) == KNOWN
        assert file.releasing is releasing
    (tmp_path / FILE).write_text(json.dumps(document(releasing=1)))
    file = MemoryFile(tmp_path)
    assert file.read(NOW) == {}
    assert not file.releasing
    assert log_lines.having("1 is neither true nor false")


def test_nothing_to_remember(tmp_path: Path, log_lines: LogLines) -> None:
    assert MemoryFile(tmp_path).read(NOW) == {}
    assert MemoryFile(tmp_path / "nowhere").read(NOW) == {}
    assert log_lines.lines == []


def test_it_is_written_for_a_decision_and_otherwise_now_and_then(tmp_path: Path) -> None:
    file = MemoryFile(tmp_path)

    def writes(now: float, *, urgent: bool = False) -> bool:
        (tmp_path / FILE).unlink(missing_ok=True)
        file.write(now, KNOWN, urgent=urgent)
        return (tmp_path / FILE).exists()

    assert writes(NOW)
    assert not writes(NOW + 2)
    assert writes(NOW + 4, urgent=True)
    assert not writes(NOW + 12)
    assert writes(NOW + 14)
    assert writes(NOW - 100), "the clock went back"


def document(**changes: Any) -> dict[str, Any]:
    vm = {**{name: getattr(KNOWN["web1"], name) for name in VmMemory.__slots__}}
    return {"version": VERSION, "written": NOW, "vms": {"web1": vm}, **changes}


def vm(**changes: Any) -> dict[str, Any]:
    whole = document()
    whole["vms"]["web1"] |= changes
    return whole


BAD: dict[str, object] = {
    "empty": b"",
    "cut": json.dumps(document()).encode()[:-5],
    "binary": b"\xff\x00",
    "nested": b"[" * 100_000,
    "too long": b" " * (MAX_FILE + 1),
    "no object": [],
    "null": None,
    "no version": {"vms": {}, "written": NOW},
    "another version": document(version=1),
    "no time": {"version": VERSION, "vms": {}},
    "written in the future": document(written=NOW + 1),
    "a sample from the future": vm(sampled=NOW + 1),
    "moving since the future": vm(moving_since=NOW + 1),
    "held for too long": vm(held_until=NOW + 301),
    "no VMs": document(vms=[1]),
    "a VM that is none": document(vms={"web1": 5}),
    "a member too many": vm(more=1),
    "a negative size": vm(demand=-1),
    "a flag for a size": vm(actual=True),
    "infinity": vm(sampled=math.inf),
    "a huge number": vm(sampled=10**400),
    "another guest": vm(guest=7),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_left_aside_with_one_line(
    tmp_path: Path, log_lines: LogLines, name: str
) -> None:
    bad = BAD[name]
    (tmp_path / FILE).write_bytes(bad if isinstance(bad, bytes) else json.dumps(bad).encode())
    file = MemoryFile(tmp_path)
    assert file.read(NOW) == {}
    assert len(log_lines.lines) == 1
    assert log_lines.lines[0].startswith("warning: the policy starts without its memory: ")
    file.write(NOW, KNOWN, urgent=True)
    assert MemoryFile(tmp_path).read(NOW) == KNOWN


def test_the_good_document_is_good(tmp_path: Path) -> None:
    """So the others are bad for the reason that their names give."""
    (tmp_path / FILE).write_text(json.dumps(document()))
    assert MemoryFile(tmp_path).read(NOW) == {"web1": KNOWN["web1"]}


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
@pytest.mark.timeout(10)
def test_odd_files(tmp_path: Path, log_lines: LogLines, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(tmp_path / FILE)
    elif kind == "folder":
        (tmp_path / FILE).mkdir()
    else:
        (tmp_path / FILE).symlink_to("/dev/zero")
    assert MemoryFile(tmp_path).read(NOW) == {}
    assert len(log_lines.lines) == 1


def test_a_failure_to_write_is_said_once(
    tmp_path: Path, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file = MemoryFile(tmp_path)
    file.write(NOW, {}, urgent=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        for _ in range(3):
            file.write(NOW, KNOWN, urgent=True)
    assert len(log_lines.lines) == 1
    assert log_lines.lines[0].endswith("No space left on device")
    assert MemoryFile(tmp_path).read(NOW) == {}, "the file is as it was"
    file.write(NOW, KNOWN, urgent=True)
    assert MemoryFile(tmp_path).read(NOW) == KNOWN
    gone = MemoryFile(tmp_path / "nowhere")
    for _ in range(3):
        gone.write(NOW, KNOWN, urgent=True)
    assert len(log_lines.lines) == 2


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    assert MemoryFile(tmp_path).read(NOW) == {}
