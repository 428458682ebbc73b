"""VMs as vhost-balloonctl reads them from a daemon's answer."""

from __future__ import annotations

from typing import Any

from vhost_balloon.ctl.model import Vm, read_vm

MIB, GIB = 1 << 20, 1 << 30


def vm(**members: Any) -> Vm:
    """Return web1, attached, with half of its memory in the balloon."""
    known = {
        "id": "web1", "attached": True, "state": "done", "guest-memory": GIB, "target": GIB // 2,
        "actual": GIB // 2, "resident": 300 * MIB, "freed-bytes": 3 * GIB, "pause-reasons": [],
        "features": ["page-reporting"], "socket-path": "/run/web1.sock", "driver-ready": True,
    }  # fmt: skip
    known |= {name.replace("_", "-"): value for name, value in members.items()}
    return read_vm([{name: value for name, value in known.items() if value is not None}])


GONE = {"id": "old", "attached": False, "state": "disconnected"}
