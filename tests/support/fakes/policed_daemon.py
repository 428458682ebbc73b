"""A fake VM's daemon as the policy sees it: a control socket with the commands that it uses."""

from __future__ import annotations

import json
from typing import Any

import trio

from tests.support.fakes.host_vms import DONE, GREETING, full_document, reply
from tests.support.helpers import GIB

Call = tuple[str, dict[str, Any]]


def policed_document(**changes: Any) -> dict[str, Any]:
    """A VM that can be moved, 4 GiB large; a change to None takes a member out."""
    known = full_document() | {
        "guest-memory": 4 * GIB,
        "target": 3 * GIB,
        "actual": 3 * GIB,
        "resident": 2 * GIB,
        "pause-reasons": [],
        "front-end-pid": 77,
        "regions": [{"guest-address": 0, "size": GIB, "page-size": 4096, "backing": "tmpfs"}],
        "settings": {"discard-hugetlb": False, "stats-interval": 10.0},
        "stats": {"stat-available-memory": GIB, "stat-major-faults": 12},
        "held": False,
        "held-for": None,
        "stats-taken": 990.0,
        "stats-actual": 3 * GIB,
    }
    return {name: value for name, value in (known | changes).items() if value is not None}


class PolicedDaemon:
    """refusals: the error's text for a command. silent: commands that get no reply."""

    def __init__(self, **changes: Any) -> None:
        self.document = policed_document(**changes)
        self.refusals: dict[str, str] = {}
        self.silent: set[str] = set()
        self.calls: list[Call] = []
        self.connections = 0

    async def behave(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        await stream.send_all(GREETING)
        data = b""
        while more := await stream.receive_some(4096):
            *requests, data = (data + more).split(b"\n")
            for request in requests:
                await stream.send_all(self._answer(json.loads(request)))

    def _answer(self, request: dict[str, Any]) -> bytes:
        command = request["execute"]
        if command == "qmp_capabilities":
            return DONE
        self.calls.append((command, request.get("arguments", {})))
        if command in self.silent:
            return b""
        if command in self.refusals:
            text = self.refusals[command]
            unknown = text.endswith("has not been found")
            error = {"class": "CommandNotFound" if unknown else "GenericError", "desc": text}
            return json.dumps({"error": error}).encode() + b"\r\n"
        return reply([self.document]) if command == "query-vms" else DONE
