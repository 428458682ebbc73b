"""Crashes are counted only if they follow each other closely."""

from __future__ import annotations

import time

import pytest

from vhost_balloon.service.systemd import Notifier
from vhost_balloon.store.descriptors import Store
from vhost_balloon.store.record import Record
from vhost_balloon.vm.vm import CRASH_MEMORY, Vm


async def test_only_crashes_soon_after_each_other_add_up(
    vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1e6
    monkeypatch.setattr(time, "clock_gettime", lambda clock: now)
    counts = []
    for pause in (0, 1, CRASH_MEMORY - 1, CRASH_MEMORY, 5):
        now += pause
        vm.crashed()
        counts.append(vm.crashes)
    assert counts == [1, 2, 3, 1, 2]


class Listening(Notifier):
    """Claims that there is a service manager."""

    def __bool__(self) -> bool:
        return True


async def test_the_next_process_continues_counting(vm: Vm) -> None:
    first = Vm("web1", store=Store(Listening(), 16))
    first.record = record = Record.create()
    first.crashed()
    vm.restore_orders(record.load("vm"))
    assert vm.crashes == 1
    vm.crashed()
    assert vm.crashes == 2
    first.close()
