"""What another version wrote of a VM is taken as far as it is understood."""

from __future__ import annotations

from vhost_balloon.inheritance import LeftVm
from vhost_balloon.record import Record
from vhost_balloon.revival import restore_vm
from vhost_balloon.state import counters_document
from vhost_balloon.store import Scope
from vhost_balloon.vm import Machine


async def test_counters_go_on_where_orders_are_not_understood(machine: Machine) -> None:
    old, new = machine.vms.values()
    old.counters.freed_bytes = 4096
    orders = {"spec": old.spec.to_json(), "halted": True}
    areas = {"vm": orders, "counters": counters_document(old.counters), "connection": None}
    left = LeftVm(old.spec, Record.create(), Scope(machine.store), areas)
    restore_vm(new, left)
    assert (new.counters.freed_bytes, new.paused) == (4096, False)
    left.record.close()
