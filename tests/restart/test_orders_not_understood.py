"""Documents of another version are used as far as they are understood."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.end_to_end import LogLines
from vhost_balloon.figures.counters import counters_document
from vhost_balloon.restart.records import restore_vm
from vhost_balloon.vm.settings import settings_to_json
from vhost_balloon.vm.vm import Vm


def areas_of(vm: Vm) -> dict[str, Any]:
    orders = {
        "settings": settings_to_json(vm.settings),
        "paused": True,
        "stats-interval": 7.0,
        "crashes": {"count": 0, "last": 0.0},
    }
    vm.counters.freed_bytes = 4096
    found = {"vm": orders, "counters": counters_document(vm.counters), "connection": None}
    vm.counters.freed_bytes = 0
    return found


async def test_documents_that_are_understood_are_restored(vm: Vm, log_lines: LogLines) -> None:
    restore_vm(vm, areas_of(vm))
    assert (vm.counters.freed_bytes, vm.paused, vm.stats_interval) == (4096, True, 7.0)
    assert log_lines.lines == []


@pytest.mark.parametrize("orders", [{"halted": True}, [], "x", {"paused": 1}])
async def test_counters_are_restored_without_orders(
    vm: Vm, log_lines: LogLines, orders: object
) -> None:
    restore_vm(vm, areas_of(vm) | {"vm": orders})
    assert (vm.counters.freed_bytes, vm.paused) == (4096, False)
    assert log_lines.having("warning: web1", "as configured")


@pytest.mark.parametrize("counters", [{"freed": 1}, [], {"totals": {}}])
async def test_orders_are_restored_without_counters(
    vm: Vm, log_lines: LogLines, counters: object
) -> None:
    restore_vm(vm, areas_of(vm) | {"counters": counters})
    assert (vm.counters.freed_bytes, vm.paused) == (0, True)
    assert log_lines.having("warning: web1", "start anew")


async def test_an_empty_record_is_not_damaged(vm: Vm, log_lines: LogLines) -> None:
    restore_vm(vm, {"vm": None, "counters": None, "connection": None})
    assert log_lines.lines == []
