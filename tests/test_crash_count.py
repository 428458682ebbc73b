"""A front end that ends the daemon by a bug again and again is told from a rare one."""

from __future__ import annotations

import time

import pytest

from vhost_balloon.record import Record
from vhost_balloon.vm import CRASH_MEMORY, Machine


async def test_only_crashes_soon_after_each_other_add_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1e6
    monkeypatch.setattr(time, "clock_gettime", lambda clock: now)
    vm = machine.vms["web1"]
    counts = []
    for pause in (0, 1, CRASH_MEMORY - 1, CRASH_MEMORY, 5):
        now += pause
        vm.crashed()
        counts.append(vm.crashes)
    assert counts == [1, 2, 3, 1, 2]


async def test_the_next_process_goes_on_counting(machine: Machine) -> None:
    first, second = machine.vms.values()
    first.record = record = Record.create()
    first.crashed()
    second.restore_orders(record.load("vm"))
    assert second.crashes == 1
    second.crashed()
    assert second.crashes == 2
    first.forget()
