"""The balloon as a device that is plugged and unplugged, in a guest that has a port for it."""

from __future__ import annotations

from tests.rig import qemu
from tests.rig.devices.hotplug import plug, unplug
from tests.rig.guest import Guest


def plug_balloon(guest: Guest, *, own: bool) -> None:
    """Plug in QEMU's own balloon, or that of the back end that the guest was started with."""
    device = qemu.own_balloon() if own else qemu.vhost_user_balloon()
    plug(guest, {**device, "bus": qemu.PORT})


def unplug_balloon(guest: Guest) -> None:
    """Unplug the balloon, which the guest first deflates."""
    unplug(guest, qemu.DEVICE_ID)
