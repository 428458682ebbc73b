"""process_*: the cost of this program, under the names that all client libraries use.

Hand-written because the client library's collector lists /proc/self/fd, where a hub has a
descriptor for each VM.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

# Positions in /proc/PID/stat after the command's name: proc_pid_stat(5).
_USER, _SYSTEM, _START, _VIRTUAL, _RESIDENT = 11, 12, 19, 20, 21


class ProcessCollector(Collector):
    """This process."""

    def __init__(self) -> None:
        # /proc/stat has the boot time too, but ProcSubset=pid hides it from a service.
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._started = boot + int(_stat()[_START]) / _TICKS

    def collect(self) -> Iterator[Metric]:
        stat = _stat()
        yield GaugeMetricFamily(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            int(stat[_VIRTUAL]),
        )
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            int(stat[_RESIDENT]) * _PAGE,
        )
        yield GaugeMetricFamily(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            self._started,
        )
        yield CounterMetricFamily(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            (int(stat[_USER]) + int(stat[_SYSTEM])) / _TICKS,
        )
        yield GaugeMetricFamily(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )
        yield GaugeMetricFamily("process_open_fds", "Number of open file descriptors.", _open_fds())


def _stat() -> list[str]:
    return Path("/proc/self/stat").read_text().rpartition(")")[2].split()


def _open_fds() -> int:
    """Since Linux 6.2 it is the folder's size."""
    size = os.stat("/proc/self/fd").st_size
    return size or len(os.listdir("/proc/self/fd")) - 1
