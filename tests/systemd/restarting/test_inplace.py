"""A guest stays with a daemon that is re-executed in place, or hangs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.rig.systemd import SERVICE, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.restarting import under_systemd
from tests.support.restarting.under_systemd import Watched, death

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def served(systemd_host: SystemdHost) -> Iterator[Watched]:
    with under_systemd.watched(systemd_host) as found:
        yield found


def test_sighup_re_executes_in_place(served: Watched) -> None:
    host = served.host
    pid = host.daemon_pid()
    for number in range(1, 4):
        served.pause(number % 2 == 1)
        host.kill(signal.SIGHUP)
        wait_until(lambda n=number: host.journal().count("front end resumed") == n, 30)  # type: ignore[misc]
        served.answers()
        served.check()
        assert (host.daemon_pid(), host.show(SERVICE, "NRestarts")) == (pid, "0")
    served.stop_and_cont()
    served.answers()
    assert "Traceback" not in host.journal()


def test_a_daemon_that_hangs_is_replaced_and_the_guest_goes_on(served: Watched) -> None:
    host = served.host
    host.drop_in(SERVICE, "[Service]\nWatchdogSec=2s\n")
    try:
        host.systemctl("restart", SERVICE)  # the watchdog's interval counts from a start on
        served.answers()
        with death(host) as end:
            host.kill(signal.SIGSTOP)
            since = time.monotonic()
            assert end.came(20)
        pause = served.answers() - since
        host.wait_logged("Watchdog timeout (limit 2s)!")
        served.check()
        print(f"without service for {pause:.1f} s")
    finally:
        host.drop_in(SERVICE, "")
