"""QMP, the QEMU Machine Protocol: builds a server's messages, checks requests and parses replies.
No I/O.

Source: QEMU docs/interop/qmp-spec.rst; the wording of errors was measured with QEMU 11.1.
qmp_stream.py splits a stream of bytes into requests.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Object: TypeAlias = Mapping[str, Json]

LINE_END: Final = b"\r\n"
"""Ends every message of the server."""


class ErrorClass(enum.Enum):
    """The error classes of QMP that this server uses."""

    GENERIC_ERROR = "GenericError"
    COMMAND_NOT_FOUND = "CommandNotFound"
    DEVICE_NOT_ACTIVE = "DeviceNotActive"
    DEVICE_NOT_FOUND = "DeviceNotFound"


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request. reply_id is {"id": value} or empty: any JSON value may be an id."""

    command: str
    arguments: Object = field(default_factory=dict)
    reply_id: Object = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRequest:
    """Input that is answered with a GenericError with this text."""

    text: str
    reply_id: Object = field(default_factory=dict)


def version(major: int, minor: int, micro: int, package: str) -> Object:
    """VersionInfo in the greeting and query-version; the member must be called "qemu"."""
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": package}


def greeting(version_info: Object) -> Object:
    """The server's first message. No capability is offered, so none can be enabled."""
    return {"QMP": {"version": version_info, "capabilities": []}}


def success(value: Json, reply_id: Object) -> Object:
    return {"return": value, **reply_id}


def error(text: str, error_class: str, reply_id: Object) -> Object:
    """A failed request's reply; error_class is the value of an ErrorClass."""
    return {"error": {"class": error_class, "desc": text}, **reply_id}


def event(name: str, data: Object, timestamp: float) -> Object:
    """timestamp: seconds since the epoch."""
    seconds, microseconds = divmod(int(timestamp * 1_000_000), 1_000_000)
    return {
        "timestamp": {"seconds": seconds, "microseconds": microseconds},
        "event": name,
        "data": data,
    }


def encode(message: Object) -> bytes:
    """One line in ASCII. Raises ValueError for infinity and NaN, which JSON lacks."""
    return json.dumps(message, allow_nan=False).encode("ascii") + LINE_END


def check_request(value: Any) -> Request | BadRequest:
    """Check a JSON value that a client sent."""
    if not isinstance(value, dict):
        return BadRequest("QMP input must be a JSON object")
    reply_id = {"id": value["id"]} if "id" in value else {}
    for name, member in value.items():
        if name == "execute" and not isinstance(member, str):
            return BadRequest("QMP input member 'execute' must be a string", reply_id)
        if name == "arguments" and not isinstance(member, dict):
            return BadRequest("QMP input member 'arguments' must be an object", reply_id)
        if name not in ("execute", "arguments", "id"):
            return BadRequest(f"QMP input member '{name}' is unexpected", reply_id)
    if "execute" not in value:
        return BadRequest("QMP input lacks member 'execute'", reply_id)
    return Request(value["execute"], value.get("arguments", {}), reply_id)


def load(text: str) -> Any:
    """Parse one message of a server strictly.

    Raises ValueError for what is not JSON or could not be sent back as JSON (duplicate keys,
    numbers out of range, halves of surrogate pairs), and RecursionError.
    """
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate key")
    return members


def _finite(text: str) -> float:
    """Refuses also Infinity and NaN, which Python reads and JSON lacks."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value
