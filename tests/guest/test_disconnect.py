"""Real guests: an operator disconnects one, which runs on, and the next QEMU is served."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.waiting import wait_until
from tests.support.vms.guests import Attached, attached

pytestmark = pytest.mark.guest


def ctl(both: Attached, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vhost_balloon.ctl", *words]
    option = f"--control-socket={both.daemon.control}"
    return subprocess.run([*command, option], capture_output=True, text=True, check=False)


def test_the_guest_runs_on_and_a_second_qemu_is_served() -> None:
    with attached("--discard=always") as both:
        name = str(both.vm()["id"])
        both.qmp.execute("balloon", {"value": GiB - 128 * MiB})
        wait_until(lambda: both.vm()["actual"] == GiB - 128 * MiB, 60)
        second = Guest(both.daemon.socket, memory=Memory(GiB))
        with contextlib.closing(second), ThreadPoolExecutor(1) as pool:
            started = pool.submit(second.start)  # it waits for its turn
            time.sleep(2)
            assert not started.done()
            done = ctl(both, "disconnect", name)
            out = f"{name}: the front end is disconnected\n"
            assert (done.returncode, done.stdout) == (0, out)
            assert "aborts at the guest's next reset" in done.stderr
            assert done.stderr.count("\n") == 1
            started.result()
            wait_until(lambda: bool(both.vm()["driver-ready"]), 30)
            vm = both.vm()
            assert (vm["target"], vm["balloon"]) == (GiB, 0)
            assert vm["front-end-pid"] == second.pid
            for _ in range(3):
                assert both.guest.run("sleep 1; echo alive").strip() == "alive"
            assert both.guest.running()
            both.qmp.execute("balloon", {"value": GiB - 64 * MiB})
            wait_until(lambda: both.vm()["actual"] == GiB - 64 * MiB, 60)
            second.reset()
            assert second.run("echo alive").strip() == "alive"
