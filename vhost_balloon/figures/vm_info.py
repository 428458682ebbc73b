"""What query-vms returns of a VM: the members of VmInfo, each with its QMP type. Pure.

control/report.py fills them in, control/schema.py publishes them, and metrics/document.py checks
them in the answers of other daemons. "*" marks a member that is left out while it is not known,
and [..] an array. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from protocol.virtio_balloon import STAT_NAMES, Queue
from vhost_balloon.errors import RingErrorReason
from vhost_balloon.figures.refusal import EVERY_REASON

RINGS: Final = (*(queue.value for queue in Queue), "ring")
"""The queues, and a ring that broke before it was known which queue it is."""

VM_INFO: Final[Mapping[str, str]] = {
    "id": "str",
    "attached": "bool",
    "state": "VmState",
    "*settings": "VmSettings",
    "*socket-path": "str",
    "*front-end-pid": "int",
    "features": "[str]",
    "protocol-features": "[str]",
    "queues": "[VmQueue]",
    "regions": "[VmRegion]",
    "guest-memory": "int",
    "*target": "int",
    "pending": "bool",
    "*actual": "int",
    "held": "bool",
    "*held-for": "number",
    "balloon": "int",
    "*resident": "int",
    "driver-ready": "bool",
    "reporting-paused": "bool",
    "pause-reasons": "[PauseReason]",
    "*pause-hint": "str",
    "queue-map-ambiguous": "bool",
    "stats": "GuestStatValues",
    "*stats-age": "number",
    "*stats-taken": "number",
    "*stats-actual": "int",
    "stats-interval": "number",
    "*report-rate": "int",
    "*huge-pages": "HugePages",
    "internal-errors": "InternalErrors",
    "reported-bytes": "int",
    "inflated-bytes": "int",
    "deflated-bytes": "int",
    "freed-bytes": "int",
    "huge-pages-freed": "int",
    "refused-bytes": "Refused",
    "refused-ranges": "Refused",
    "requests": "Requests",
    "ring-errors": "RingErrors",
    "front-end-errors": "int",
    "front-end-stalls": "int",
    "config-changes": "int",
    "discard-seconds": "Histogram",
}

PARTS: Final[Mapping[str, Mapping[str, str]]] = {
    "GuestStatValues": {f"*{name}": "int" for name in STAT_NAMES.values()},
    "Histogram": {"counts": "[int]", "sum": "number"},
    "HugePages": {"partial": "int", "whole": "int", "waiting-bytes": "int"},
    "Refused": {f"*{reason}": "int" for reason in EVERY_REASON},
    "Requests": {f"*{queue.value}": "int" for queue in Queue},
    "RingErrorReasons": {f"*{reason.value}": "int" for reason in RingErrorReason},
    "RingErrors": {f"*{ring}": "RingErrorReasons" for ring in RINGS},
    "VmQueue": {
        "index": "int",
        "*queue": "str",
        "size": "int",
        "started": "bool",
        "enabled": "bool",
        "*broken": "str",
        "requests": "int",
    },
    "VmRegion": {"guest-address": "int", "size": "int", "page-size": "int", "backing": "str"},
}
"""The object types in it, apart from VmSettings (vm/settings.py) and InternalErrors (containment).
"""
