"""Processes: the pauses a VM sees when its daemon ends under real systemd, and each daemon's cost.

The VMs are simulated front ends (tests.support.vms.crowd) in the system's PID namespace.
"""

from __future__ import annotations

import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from protocol.vhost_user import HEADER_SIZE
from tests.benchmarks.clocks import cpu_seconds
from tests.benchmarks.report import Bar, Row
from tests.rig.memory import MiB
from tests.rig.provisioning.packages import SYSTEMD, provision
from tests.rig.systemd import WEB1, Instance, SystemdHost
from tests.support.helpers import receive
from tests.support.vms.crowd import Crowd

IDLE_VMS: Final = 200
IDLE_SECONDS: Final = 60.0
STARTED_AT_ONCE: Final = 8
"""Starting more at once would make single starts too slow on this machine."""
OPTIONS: Final = ("--discard=always", "--stats-interval=10")
GET_FEATURES: Final = bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
"""vhost-user: the request, version 1, no payload."""


def measure(rounds: int, *, vms: int = IDLE_VMS, seconds: float = IDLE_SECONDS) -> list[Row]:
    """Measure each end `rounds` times, and `vms` idle VMs once for that many seconds."""
    provision((SYSTEMD,))
    with SystemdHost() as host:
        host.install()
        with host.options(*OPTIONS):
            try:
                ends = [*_pauses(host, rounds), *_activation(host, rounds)]
                return [*ends, *_idle(host, vms, seconds)]
            finally:
                host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


# Ends


def _restart(host: SystemdHost) -> None:
    host.systemctl("restart", WEB1.service)


def _kill(host: SystemdHost) -> None:
    host.systemctl("reset-failed", WEB1.service)  # otherwise systemd waits longer each time
    host.wait_replaced(host.kill())


def _upgrade(host: SystemdHost) -> None:
    """The process stays; a control client's connection ends."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(host.path(WEB1.control)))
        client.recv(1)
        host.kill(signal.SIGHUP)
        while client.recv(4096):
            pass


ENDS: Final[dict[str, tuple[Callable[[SystemdHost], None], float]]] = {
    "systemctl restart": (_restart, 1000),
    "SIGKILL": (_kill, 1000),
    "upgrade in place": (_upgrade, 500),
}
"""The ways a process ends, and how long its VM may wait (milliseconds)."""


def _pauses(host: SystemdHost, rounds: int) -> list[Row]:
    """Measure the longest wait of a VM that uses its balloon continuously."""
    found: dict[str, list[float]] = {name: [] for name in ENDS}
    host.systemctl("start", WEB1.socket)
    with Crowd(host) as crowd:
        crowd.attach({WEB1.vm: host.path(WEB1.path)})
        for number in range(rounds):
            for name, (end, _) in ENDS.items():
                crowd.begin_using(WEB1.vm)
                end(host)
                found[name].append(crowd.end_using().longest * 1000)
            print(f"processes: round {number + 1} of {rounds}", file=sys.stderr)
    host.systemctl("stop", *WEB1.units)
    return [_times(f"pause at {name}", found[name], bar) for name, (_, bar) in ENDS.items()]


def _activation(host: SystemdHost, rounds: int) -> list[Row]:
    """Measure from a front end's connection to its first answer, with no daemon running yet."""
    times = []
    for _ in range(rounds):
        host.systemctl("start", WEB1.socket)
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.settimeout(30)
            started = time.perf_counter()
            front_end.connect(str(host.path(WEB1.path)))
            front_end.sendall(GET_FEATURES)
            receive(front_end, HEADER_SIZE)
            times.append((time.perf_counter() - started) * 1000)
        host.systemctl("stop", *WEB1.units)
    return [_times("connection to first answer", times, 450)]


# Idle


def _idle(host: SystemdHost, count: int, seconds: float) -> list[Row]:
    """Measure the cost of idle VMs that send statistics every 10 s."""
    vms = [Instance(f"vm{number}") for number in range(count)]
    with Crowd(host) as crowd:
        for some in _batches(vms):
            host.systemctl("start", *(vm.socket for vm in some))
            crowd.attach({vm.vm: host.path(vm.path) for vm in some})
            print(f"processes: {some[-1].vm} of {count} attached", file=sys.stderr)
        crowd.give_statistics()
        time.sleep(10)  # let the work after attaching finish
        pids = [host.daemon_pid(vm.service) for vm in vms]
        used = sum(map(cpu_seconds, pids))
        time.sleep(seconds)
        used = (sum(map(cpu_seconds, pids)) - used) / seconds
        memory = [private_memory(pid) / MiB for pid in pids]
    host.systemctl("stop", *(unit for vm in vms for unit in vm.units))
    note = "without metrics, a VM attached"
    bars = [Bar("a daemon", 17.5, at_most=True)]
    return [
        Row("private memory", "MiB", {"a daemon": memory}, bars=bars, note=note),
        Row(
            f"CPU, {count} idle VMs with statistics every 10 s",
            "% of a core",
            {"in all": [100 * used]},
            bars=[Bar("in all", 2, at_most=True)],
        ),
    ]


def _batches(vms: list[Instance]) -> Iterator[list[Instance]]:
    for start in range(0, len(vms), STARTED_AT_ONCE):
        yield vms[start : start + STARTED_AT_ONCE]


def private_memory(pid: int) -> int:
    """Bytes that would be free if the process ended: its Private_Clean and Private_Dirty."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB$", text, re.MULTILINE)
    return sum(map(int, sizes)) * 1024


def _times(work: str, times: list[float], bar: float) -> Row:
    """p50 and p99 are held to the same bar."""
    worst = sorted(times)[max(0, round(0.99 * len(times)) - 1)]
    values = {"p50": times, "p99": [worst]}
    return Row(work, "ms", values, bars=[Bar(name, bar, at_most=True) for name in values])
