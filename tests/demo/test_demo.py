"""vhost-balloon-demo: its command line, and whole runs with the real daemon."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from vhost_balloon.demo import __main__ as demo
from vhost_balloon.demo.errors import DemoError
from vhost_balloon.demo.options import Options, parse_options
from vhost_balloon.demo.player import PLAY_SECONDS

MIB = 1 << 20


def test_the_command_line() -> None:
    assert parse_options([]) == Options(512 * MIB, PLAY_SECONDS, True)
    assert parse_options(["--memory=1G", "--seconds=8", "--no-reporting"]) == Options(
        1 << 30, 8.0, False
    )


@pytest.mark.parametrize(
    "argument",
    ["--memory=12", "--memory=x", "--memory=64.5M", "--memory=2T", "--seconds=0", "--seconds=nan"],
)
def test_a_bad_command_line_ends_with_status_2(
    argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_options([argument])
    assert end.value.code == 2
    assert argument.split("=")[0] in capsys.readouterr().err


def run_demo(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vhost_balloon.demo", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, **options)


def test_it_shows_freed_memory_coming_back() -> None:
    process = run_demo("--memory=192M", "--seconds=5", stdout=subprocess.PIPE)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    text = output.decode()
    peak = float(re.findall(r"host spent at most +([\d.]+) MiB", text)[0])
    now = float(re.findall(r"host spends now +([\d.]+) MiB", text)[0])
    reported = float(re.findall(r"reported by the guest +([\d.]+) MiB", text)[0])
    freed = float(re.findall(r"freed for the host +([\d.]+) MiB", text)[0])
    assert peak > 0.78 * 192
    assert now < 40
    assert reported > 150
    assert freed > 0.9 * (peak - now)
    assert re.search(r"came back +95 % of [\d.]+ MiB within \d+\.\d s", text)


def test_without_reporting_the_memory_stays() -> None:
    process = run_demo("--memory=128M", "--seconds=3", "--no-reporting", stdout=subprocess.PIPE)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert "freed memory came back  it did not" in output.decode()
    assert "reported by the guest   0 B" in output.decode()


def test_a_closed_output_does_not_stop_it() -> None:
    process = run_demo("--memory=64M", "--seconds=3", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")


@pytest.fixture
def hangups() -> Iterator[None]:
    """Reset SIGHUP, which nohup makes the tests ignore."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(number: signal.Signals, short_folder: Path) -> None:
    process = run_demo(
        "--memory=64M", stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(short_folder)}
    )
    assert process.stdout is not None
    process.stdout.readline()  # the play has started
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + number, b"")
    assert list(short_folder.iterdir()) == []


async def test_a_daemon_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho vhost-balloon: no such luck >&2\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(DemoError, match="did not start: vhost-balloon: no such luck"):
        await demo.run(Options(64 * MIB, 3.0))


def test_too_little_memory_makes_a_smaller_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "available_memory", lambda: 500 * MIB)
    assert demo.affordable(512 * MIB) == 256 * MIB
    assert demo.affordable(128 * MIB) == 128 * MIB
    monkeypatch.setattr(demo, "available_memory", lambda: 0)
    assert demo.affordable(512 * MIB) == 64 * MIB


@pytest.mark.parametrize(
    ("memory", "pace", "delay"), [(512 * MIB, 1.0, 2.0), (4 << 30, 1.0, 0.5), (512 * MIB, 0.5, 1.0)]
)
def test_the_report_delay_is_linuxs_unless_that_takes_too_long(
    memory: int, pace: float, delay: float
) -> None:
    assert demo.report_delay(memory, pace) == delay


@pytest.mark.slow
def test_the_policy_keeps_the_host_within_its_memory() -> None:
    process = run_demo("policy", "--memory=256M", "--seconds=50", stdout=subprocess.PIPE)
    output, errors = process.communicate(timeout=150)
    assert (process.returncode, errors) == (0, b"")
    text = output.decode()
    rows = {line[2:36].strip(): line[36:].split() for line in text.splitlines() if line[:2] == "  "}
    over = rows["guests used more than it has for"]
    assert float(over[0]) > 1
    assert float(over[2]) < float(over[0]) / 2
    assert "reclaim" in " ".join(rows["orders to reader"])
