"""Plugging devices into a running guest, and unplugging them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.rig.errors import RigTimeout
from tests.rig.guest import Guest

Properties = Mapping[str, Any]
"""A device or an object as device_add, object-add and -device, -object in JSON take it."""


def plug(guest: Guest, device: Properties, *objects: Properties) -> None:
    """Create objects, such as memory backends, then the device that uses them."""
    for properties in objects:
        guest.qmp.execute("object-add", properties)
    guest.qmp.execute("device_add", device)


def unplug(guest: Guest, device: str, *objects: str, timeout: float = 30) -> None:
    """Ask the guest to release a device; delete the objects that it used.

    Raises:
        RigTimeout: the guest did not release it within timeout seconds.
    """
    guest.qmp.events.clear()
    guest.qmp.execute("device_del", {"id": device})
    try:
        guest.qmp.wait_event(
            "DEVICE_DELETED",
            timeout=timeout,
            matching=lambda event: event["data"].get("device") == device,
        )
    except RigTimeout as error:
        raise RigTimeout(f"{device} is not released: {list(guest.qmp.events)}") from error
    for name in objects:
        guest.qmp.execute("object-del", {"id": name})
