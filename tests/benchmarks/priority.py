"""Processors and priority for what is measured, so that nothing else gets in between.

What is measured has a processor of its own, at real-time priority. This process, which polls for
the answers, has another: on the same one it would have to wait until the other sleeps, which a
guest that is interrupted does not.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def placed(served: Collection[int], beside: Collection[int]) -> Iterator[None]:
    """Place all threads of processes, by pid, that run already.

    served: on the second of two processors, at real-time priority (SCHED_FIFO) where that is
    permitted. beside: on the first, with this thread. With one processor nothing moves.
    """
    before = os.sched_getaffinity(0)
    first, second = _two_of(before)
    try:
        # Our other threads stay: what they start later would inherit the place.
        os.sched_setaffinity(0, first)
        for pid in beside:
            _pin(pid, first)
        for pid in served:
            _pin(pid, second)
        _prefer(served)
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def preferred() -> Iterator[None]:
    """Give this thread real-time priority, where that is permitted.

    For the length of one work: other processes that need its processor get it in between.
    """
    if len(os.sched_getaffinity(0)) > 1 or not permitted():
        yield  # not placed, or without rights
        return
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def permitted() -> bool:
    """Whether this process may use real-time priority."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, policy, parameters)
    return True


def _two_of(processors: set[int]) -> tuple[set[int], set[int]]:
    """Two processors, of different cores if possible; the same ones twice if there is one."""
    first = min(processors)
    others = processors - {first}
    cores = others - _siblings(first)
    if not others:
        return processors, processors
    return {first}, {min(cores or others)}


def _siblings(processor: int) -> set[int]:
    """The processors of its core; empty if the kernel does not say."""
    path = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
    try:
        spans = re.findall(r"(\d+)(?:-(\d+))?", path.read_text())
    except OSError:
        return set()
    return {n for low, high in spans for n in range(int(low), int(high or low) + 1)}


def _pin(pid: int, processors: set[int]) -> None:
    for task in _tasks(pid):
        os.sched_setaffinity(task, processors)


def _prefer(pids: Collection[int]) -> None:
    if not permitted():
        print("benchmarks: without real-time priority, which takes CAP_SYS_NICE", file=sys.stderr)
        return
    for task in (task for pid in pids for task in _tasks(pid)):
        os.sched_setscheduler(task, os.SCHED_FIFO, os.sched_param(1))


def _tasks(pid: int) -> list[int]:
    return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
