"""Times answers of a control socket, from a process of its own:
`python -m tests.benchmarks.control_latency SOCKET VM COUNT` prints JSON, milliseconds by command.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.rig.qmp import QMPClient


def latencies(socket: Path, vm: str, count: int) -> dict[str, list[float]]:
    """The milliseconds that each of `count` answers took, by command."""
    client = QMPClient(socket)
    commands: dict[str, dict[str, Any]] = {"query-balloon": {"id": vm}, "query-vms": {}}
    found: dict[str, list[float]] = {command: [] for command in commands}
    for _ in range(count):
        for command, arguments in commands.items():
            started = time.perf_counter()
            client.execute(command, arguments)
            found[command].append((time.perf_counter() - started) * 1000)
            time.sleep(0.02)
    client.close()
    return found


if __name__ == "__main__":
    print(json.dumps(latencies(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
