"""A fake VM's daemon that carries out the orders of the policy, and notes them."""

from __future__ import annotations

import json
import time
from typing import Any

import trio

from tests.support.fakes.host_vms import GREETING, full_document, reply
from tests.support.helpers import GIB


class PolicedVm:
    """A VM of 4 GiB whose guest uses 1 GiB and follows orders at once."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.ordered = trio.Event()
        self.connections = 0
        self.held = False
        self.target = 4 * GIB

    async def behave(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        await stream.send_all(GREETING)
        data = b""
        while more := await stream.receive_some(4096):
            *lines, data = (data + more).split(b"\n")
            for line in lines:
                request = json.loads(line)
                answer = self._answer(request["execute"], request.get("arguments", {}))
                await stream.send_all(reply(answer))

    def _answer(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "query-vms":
                return [self._document()]
            case "balloon":
                self.orders.append(arguments)
                self.target = arguments["value"]
                self.ordered.set()
            case "policy-hold" | "policy-release":
                self.held = command == "policy-hold"
        return {}

    def _document(self) -> dict[str, Any]:
        known = {
            "guest-memory": 4 * GIB, "target": self.target, "actual": self.target,
            "resident": self.target, "held": self.held, "pause-reasons": [],
            "stats-taken": time.clock_gettime(time.CLOCK_BOOTTIME), "stats-actual": self.target,
            "stats": {"stat-available-memory": self.target - GIB, "stat-major-faults": 0},
        }  # fmt: skip
        return full_document() | known
