"""Real guests: vhost-balloonctl, as an operator uses it on a host."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.inside import workload
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.waiting import wait_until
from tests.support.pty_session import PtySession
from tests.support.vms.guests import Attached, attached

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def both() -> Iterator[Attached]:
    """One guest for all tests, which leave it with an empty balloon and not paused."""
    with attached("--stats-interval=1") as one:
        yield one


def command(daemon: Daemon, *words: str) -> list[str]:
    control = f"--control-socket={daemon.control}"
    return [sys.executable, "-m", "vhost_balloon.ctl", control, *words]


def ctl(daemon: Daemon, *words: str, status: int = 0) -> str:
    """What a command prints, on standard output or, if it fails, on standard error."""
    done = subprocess.run(
        command(daemon, *words), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == status, done.stderr
    said, silent = (done.stdout, done.stderr) if status == 0 else (done.stderr, done.stdout)
    assert silent == ""
    assert status == 0 or said.count("\n") == 1
    return said


def ctl_json(daemon: Daemon, *words: str) -> Any:
    return json.loads(ctl(daemon, *words, "--json"))


def test_list_and_status(both: Attached) -> None:
    name, state, *_ = ctl(both.daemon, "list").splitlines()[1].split()
    assert (name, state) == ("vm", "done")
    (vm,) = ctl_json(both.daemon, "list")
    assert (vm["attached"], vm["guest-memory"], vm["actual"]) == (True, GiB, GiB)
    assert vm["resident"] == pytest.approx(both.guest.resident(), abs=64 * MiB)
    status = ctl_json(both.daemon, "status", "vm")
    assert status["front-end-pid"] == both.guest.pid
    text = ctl(both.daemon, "status", "vm")
    assert f"process {both.guest.pid}\n" in text
    assert "free page reporting   on\n" in text


def test_set_and_wait(both: Attached) -> None:
    said = ctl(both.daemon, "set", "vm", "512M", "--wait", "--timeout=60")
    assert said.startswith("vm: 512 MiB after ")
    assert both.qmp.execute("query-balloon") == {"actual": 512 * MiB}
    found = ctl_json(both.daemon, "set", "vm", "64T", "--wait", "--timeout=60")
    assert (found["target"], found["actual"], found["state"]) == (GiB, GiB, "done")
    assert ctl(both.daemon, "set", "vm", "64T") == "vm: target 1 GiB, all of its memory\n"


def test_a_guest_that_cannot_give_so_much(both: Attached) -> None:
    """It has less than 64 MiB beyond what its kernel and shell need."""
    said = ctl(both.daemon, "set", "vm", "16M", "--wait", "--timeout=90", status=1)
    assert "vm is out of memory: actual" in said or "vm is stuck: actual" in said
    assert "target 16 MiB" in said
    ctl(both.daemon, "set", "vm", "1G", "--wait", "--timeout=60")


def test_stats(both: Attached) -> None:
    asked = int(time.time())
    found = ctl_json(both.daemon, "stats", "vm")
    assert found["last-update"] >= asked
    info = both.guest.meminfo()
    assert found["stats"]["stat-total-memory"] == info["MemTotal"]
    assert "free memory" in ctl(both.daemon, "stats", "vm")
    assert ctl_json(both.daemon, "stats", "vm", "--last")["last-update"] >= found["last-update"]


def test_a_stopped_guest_is_silent(both: Attached) -> None:
    both.guest.stop()
    try:
        assert "driver is not ready" in ctl(both.daemon, "stats", "vm", status=1)
        assert "pending" in ctl(both.daemon, "set", "vm", "1G")
        said = ctl(both.daemon, "set", "vm", "900M", "--wait", "--timeout=0.5", status=1)
        assert "did not reach its target within 0.5 s: no-driver" in said
    finally:
        both.guest.cont()
        both.wait_driver()
    ctl(both.daemon, "set", "vm", "1G", "--wait", "--timeout=60")


def test_pause_and_resume(both: Attached) -> None:
    """Freed memory comes back only once discarding is resumed."""
    assert ctl_json(both.daemon, "pause", "vm")["pause-reasons"] == ["operator"]
    workload.fill(both.guest, 200 * MiB)
    full = both.guest.resident()
    paused = both.vm()["refused-bytes"].get("paused", 0)
    workload.free(both.guest)
    wait_until(lambda: both.vm()["refused-bytes"].get("paused", 0) > paused + 150 * MiB, 20)
    assert both.guest.resident() > full - 32 * MiB
    assert "paused: operator" in ctl(both.daemon, "list")
    assert "not paused" in ctl(both.daemon, "resume", "vm")
    # What was reported meanwhile is not reported again until it was used again.
    workload.fill(both.guest, 200 * MiB)
    full = both.guest.resident()
    workload.free(both.guest)
    wait_until(lambda: both.guest.resident() < full - 150 * MiB, 20)


def test_qemu_args_attach_a_guest() -> None:
    """They are all that QEMU needs besides its machine and kernel."""
    with Daemon() as daemon:
        words = ctl_json(daemon, "qemu-args", "vm", "--memory=512M")
        memory = Memory(512 * MiB, "none")  # without a backend: that is theirs
        with Guest(memory=memory, qemu_arguments=tuple(words)) as guest, daemon.qmp() as qmp:
            wait_until(lambda: bool(qmp.execute("query-vms")[0]["driver-ready"]), 30)
            assert guest.meminfo()["MemTotal"] < 512 * MiB
            assert qmp.execute("query-vms")[0]["guest-memory"] == 512 * MiB
            assert ctl_json(daemon, "qemu-args", "vm") == words


def test_errors_are_one_line(both: Attached) -> None:
    assert "there is no VM 'x' (known VMs: vm)" in ctl(both.daemon, "status", "x", status=1)
    ctl(both.daemon, "set", "vm", "nonsense", status=2)
    assert ctl_json(both.daemon, "list")[0]["target"] == GiB


def test_the_progress_bar(both: Attached) -> None:
    with PtySession(*command(both.daemon, "set", "vm", "600M", "--wait")) as terminal:
        terminal.wait_for("% ")
        assert terminal.wait(60) == 0
        assert "vm: 600 MiB after " in terminal.text.rpartition("\r\x1b[K")[2]
    ctl(both.daemon, "set", "vm", "1G", "--wait")


def test_watch_in_a_terminal(both: Attached) -> None:
    with PtySession(*command(both.daemon, "watch", "--interval=0.5"), columns=120) as terminal:
        terminal.wait_for("1 VM, 1 attached")
        terminal.wait_for("done")
        ctl(both.daemon, "set", "vm", "400M", "--wait", "--timeout=60")
        terminal.wait_for("400 MiB  400 MiB")
        terminal.wait_for("q: quit")
        row = terminal.screen()[2]
        assert row.startswith("vm  done  ")
        assert "▃" in row  # 400 of 1024 MiB, in eighths
        assert "█" in row  # what it was before
        terminal.resize(60, 10)
        terminal.wait_for("q: quit")
        assert max(map(len, terminal.screen())) <= 60
        terminal.type("q")
        assert terminal.wait() == 0
        assert terminal.is_restored()
    ctl(both.daemon, "set", "vm", "1G", "--wait")


def test_a_guest_that_goes_ends_the_wait() -> None:
    with attached() as both:
        waiting = subprocess.Popen(
            command(both.daemon, "set", "vm", "16M", "--wait"), stderr=subprocess.PIPE, text=True
        )
        with waiting:
            wait_until(lambda: both.vm().get("target") == 16 * MiB, 20)
            both.guest.kill()
            assert waiting.wait(20) == 1
            assert waiting.stderr is not None
            assert waiting.stderr.read() == "vhost-balloonctl: vm went away\n"
