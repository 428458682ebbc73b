"""The demo: its play with a guest of cardboard, its output, and the whole with the real daemon."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import trio
import trio.testing

from tests.support.paths import ROOT
from vhost_balloon.demo import __main__ as demo
from vhost_balloon.demo.__main__ import Options, parse_options
from vhost_balloon.demo.available import available_memory
from vhost_balloon.demo.picture import History, Mark, Sample
from vhost_balloon.demo.player import PLAY_SECONDS, DemoError, QmpClient, play
from vhost_balloon.demo.screen import Screen

MIB = 1 << 20


# The play


class CardboardGuest:
    """A guest and its daemon without memory: what is freed is reported after two seconds."""

    def __init__(self, *, reporting: bool = True, balloon_works: bool = True) -> None:
        self.memory = 512 * MIB
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.used = self.spent = self.balloon = self.reported = 0
        self.peak = 0
        self._reporting = reporting
        self._balloon_works = balloon_works
        self._freed_at = 0.0

    async def boot(self) -> None:
        self.used = self.spent = 32 * MIB

    async def touch(self, size: int) -> None:
        self.used += size
        self.spent = max(self.spent, self.used)
        self.peak = max(self.peak, self.used)

    async def free(self) -> None:
        self.used = 32 * MIB
        self._freed_at = trio.current_time()

    async def in_use(self) -> int:
        return self.used

    async def resident(self) -> int:
        if self._reporting and trio.current_time() > self._freed_at + 2:
            self.reported += self.spent - self.used
            self.spent = self.used
        return self.spent

    async def execute(self, command: str, **arguments: Any) -> Any:
        if command == "balloon":
            self.commands.append((command, arguments))
            self.balloon = self.memory - arguments["value"] if self._balloon_works else 0
        if command != "query-vms":
            return {}
        return [{"id": "demo", "balloon": self.balloon, "reported-bytes": self.reported}]


async def played(guest: CardboardGuest, **options: Any) -> tuple[History, str]:
    output = io.StringIO()
    history = History("test", guest.memory, PLAY_SECONDS)
    with Screen(history, output) as screen:
        await play(guest, guest, screen, **options)
    return history, output.getvalue()


async def test_the_play_has_its_parts_in_order(autojump_clock: trio.testing.MockClock) -> None:
    guest = CardboardGuest()
    history, _ = await played(guest)
    names = [mark.name for mark in history.marks]
    assert names == ["boot", "touch", "free", "again", "inflate", "deflate"]
    assert guest.peak > 0.79 * guest.memory
    assert guest.commands == [
        ("balloon", {"value": 256 * MIB}),
        ("balloon", {"value": 512 * MIB}),
    ]
    assert max(sample.balloon for sample in history.samples) == 256 * MIB
    last = history.samples[-1]
    assert (last.in_use, last.resident, last.balloon) == (32 * MIB, 32 * MIB, 0)
    assert 10 < last.time < PLAY_SECONDS + 3


@pytest.mark.parametrize("pace", [0.25, 3.0])
async def test_the_pace_stretches_the_play(
    pace: float, autojump_clock: trio.testing.MockClock
) -> None:
    history, _ = await played(CardboardGuest(reporting=False), pace=pace, reporting=False)
    assert 14 * pace < history.samples[-1].time < 20 * pace


async def test_without_reporting_it_says_so_and_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    history, output = await played(CardboardGuest(reporting=False), reporting=False)
    assert history.samples[-1].resident > 0.79 * 512 * MIB
    assert "the host is not told" in output


async def test_a_daemon_that_does_nothing_is_an_error_not_a_hang(
    autojump_clock: trio.testing.MockClock,
) -> None:
    history, _ = await played(CardboardGuest(reporting=False))
    assert history.samples[-1].resident > 0.79 * 512 * MIB, "shown as it is"
    with pytest.raises(DemoError, match="balloon did not reach"):
        await played(CardboardGuest(balloon_works=False))


# The control socket's client


async def request(stream: trio.SocketStream) -> Any:
    """The next line that the client sends."""
    line = b""
    while not line.endswith(b"\n"):
        line += await stream.receive_some(1)
    return json.loads(line)


async def test_the_client_negotiates_and_skips_events() -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    seen: list[Any] = []

    async def server() -> None:
        stream = trio.SocketStream(theirs)
        await stream.send_all(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        seen.append(await request(stream))
        await stream.send_all(b'{"return": {}}\r\n')
        seen.append(await request(stream))
        await stream.send_all(b'{"event": "BALLOON_CHANGE"}\r\n{"return"')
        await stream.send_all(b": [1]}\r\n")
        seen.append(await request(stream))
        await stream.send_all(b'{"error": {"class": "DeviceNotActive", "desc": "no"}}\r\n')
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        async with await QmpClient.negotiate(trio.SocketStream(ours)) as client:
            assert await client.execute("query-vms") == [1]
            with pytest.raises(DemoError, match="balloon: no"):
                await client.execute("balloon", value=1)
            with pytest.raises(DemoError, match="daemon is gone"):
                await client.execute("query-vms")
    assert seen[0]["execute"] == "qmp_capabilities"
    assert seen[2] == {"execute": "balloon", "arguments": {"value": 1}}


# Output


def history_of(seconds: int) -> History:
    samples = [Sample(tenth / 10, 3 * MIB, 4 * MIB) for tenth in range(seconds * 10 + 1)]
    return History("test", 8 * MIB, 10.0, samples, [Mark(0.0, "boot", "It boots.")])


def test_a_log_has_a_line_a_second_and_one_for_each_part() -> None:
    full, output = history_of(3), io.StringIO()
    history = History("test", 8 * MIB, 10.0, [], full.marks)
    screen = Screen(history, output)
    for sample in full.samples:
        history.samples.append(sample)
        if sample.time == 1.5:
            history.marks.append(Mark(1.5, "touch", "It touches."))
        screen.show()
    lines = output.getvalue().splitlines()
    assert [line[:16] for line in lines] == [
        "--- It boots.",
        "  0.0 s  boot   ",
        "  1.0 s  boot   ",
        "--- It touches.",
        "  1.5 s  touch  ",
        "  2.5 s  touch  ",
    ]
    assert "\x1b" not in output.getvalue()


def test_output_ends_when_nobody_reads_and_the_demo_goes_on() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        screen = Screen(history_of(1), stream)
        screen.show()
        screen.write(["more"])
        stream.write("even this is harmless")


def test_without_any_standard_output_nothing_happens() -> None:
    with Screen(history_of(1), None) as screen:
        screen.show()
        screen.write(["text"])


class Terminal:
    """A pseudo-terminal of 80 x 24 that this process writes to; a context manager."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self.stream = os.fdopen(slave, "w", encoding=encoding)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()
        os.close(self._master)

    def written(self) -> str:
        """All that was written since the last time. One read of a terminal gives a part of it."""
        print(end="\0", file=self.stream, flush=True)
        data = b""
        while not data.endswith(b"\0"):
            data += os.read(self._master, 1 << 16)
        return data[:-1].decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Terminal() as terminal:
        yield terminal


def test_a_terminal_gets_frames_drawn_over_each_other(terminal: Terminal) -> None:
    with Screen(history_of(1), terminal.stream) as screen:
        assert terminal.written() == "\x1b[?25l", "the cursor is hidden"
        screen.show()
        first = terminal.written()
        assert first.count("\n") == 23
        assert "█" in first
        screen.show()
        assert terminal.written().startswith("\x1b[23A\r")
        termios.tcsetwinsize(terminal.stream.fileno(), (30, 100))
        screen.show()
        assert terminal.written().startswith("\x1b[H\x1b[2J"), "a resized terminal is cleared"
        screen.write(["the end"])
        assert terminal.written().endswith("the end\r\n")
    assert terminal.written() == "\x1b[?25h", "the cursor is back"


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_a_terminal_without_colours_gets_none(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    Screen(history_of(1), terminal.stream).show()
    written = terminal.written()
    assert "It boots" in written
    assert not re.search(r"\x1b\[\d+m", written)


def test_a_terminal_that_is_not_utf_8_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with Terminal("iso8859-1") as terminal:
        termios.tcsetwinsize(terminal.stream.fileno(), (0, 0))
        Screen(history_of(1), terminal.stream).show()
        written = terminal.written()
    assert written.isascii()
    assert written.count("\n") == 23, "a terminal that does not know its size has 80 x 24"


# How much memory there is


def test_the_kernels_estimate_counts_without_a_cgroup(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n")
    assert available_memory(tmp_path) == 2 * MIB


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [("max", "max", 2 * MIB), ("1000000", "max", 900_000), ("max", "150000", 50_000)],
)
def test_the_tightest_cgroup_counts(tmp_path: Path, outer: str, inner: str, expected: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 2048 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("1:name=x:/y\n0::/a/b\n")
    for name, limit in (("a", outer), ("a/b", inner)):
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("100000\n")
    assert available_memory(tmp_path) == expected


def test_this_machine_has_some() -> None:
    assert available_memory() > 0


# The command


def test_the_command_line() -> None:
    assert parse_options([]) == Options(512 * MIB, PLAY_SECONDS, True)
    assert parse_options(["--memory=1G", "--seconds=8", "--no-reporting"]) == Options(
        1 << 30, 8.0, False
    )


@pytest.mark.parametrize(
    "argument",
    ["--memory=12", "--memory=x", "--memory=1.5G", "--memory=2T", "--seconds=0", "--seconds=nan"],
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
    peak = int(re.findall(r"host spent at most +(\d+) MiB", text)[0])
    now = int(re.findall(r"host spends now +(\d+) MiB", text)[0])
    reported = int(re.findall(r"reported by the guest +(\d+) MiB", text)[0])
    freed = int(re.findall(r"freed for the host +(\d+) MiB", text)[0])
    assert peak > 0.78 * 192
    assert now < 40
    assert reported > 150
    assert freed > 0.9 * (peak - now)
    assert re.search(r"came back +95 % of \d+ MiB within \d+\.\d s", text)


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
    """SIGHUP counts, also where the tests were started to outlive their terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    process = run_demo(
        "--memory=64M", stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert process.stdout is not None
    process.stdout.readline()  # it plays
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + number, b"")
    assert list(tmp_path.iterdir()) == []


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
def test_reports_are_as_slow_as_linuxs_unless_that_takes_too_long(
    memory: int, pace: float, delay: float
) -> None:
    assert demo.report_delay(memory, pace) == delay
