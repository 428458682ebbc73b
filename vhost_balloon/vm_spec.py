"""A VM as it is wished for: its name, where its front end connects, and its settings."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocol.qmp import Json
from vhost_balloon.vm_settings import (
    SettingError,
    VmSettings,
    is_file_name_text,
    settings_from_json,
    settings_to_json,
)

CONTROL: Final = "control"
METRICS: Final = "metrics"
RESERVED_NAMES: Final = (CONTROL, METRICS)
MAX_NAME: Final = 255
"""Bytes: what a file's name may have, from which names usually come."""


class Origin(enum.Enum):
    """Where a VM came from, and comes from again at the daemon's next start."""

    COMMAND_LINE = "command-line"
    CONFIG = "config"
    HANDED_OVER = "handed-over"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class VmSpec:
    """socket_path is absolute, or None where the front end is connected already (--fd)."""

    id: str
    settings: VmSettings = field(default_factory=VmSettings)
    socket_path: Path | None = None
    origin: Origin = Origin.COMMAND_LINE

    def to_json(self) -> dict[str, Json]:
        """JSON values, from which from_json makes the same VmSpec again."""
        return {
            "id": self.id,
            "socket-path": None if self.socket_path is None else str(self.socket_path),
            "origin": self.origin.value,
            "settings": settings_to_json(self.settings),
        }

    @classmethod
    def from_json(cls, value: object) -> VmSpec:
        """Raises ValueError for anything but what to_json makes."""
        if not isinstance(value, Mapping):
            raise ValueError("a VM is no object")
        unknown = set(value) - {"id", "socket-path", "origin", "settings"}
        if unknown:
            raise SettingError(sorted(map(str, unknown))[0], "is not known")
        path, settings = value.get("socket-path"), value.get("settings", {})
        if not isinstance(settings, Mapping):
            raise SettingError("settings", "expects an object")
        return cls(
            id=read_id(value.get("id")),
            settings=settings_from_json(settings, VmSettings()),
            socket_path=None if path is None else read_socket_path(path),
            origin=Origin(value.get("origin")),
        )


def read_id(value: object) -> str:
    """A VM's name. Raises SettingError.

    It is the last part of a path in qom-get, so it has no "/"; names that begin with "." are kept
    for what this daemon may need.
    """
    if not isinstance(value, str):
        raise SettingError("id", "expects a string")
    if (
        not value
        or value in RESERVED_NAMES
        or value.startswith(".")
        or "/" in value
        or not is_file_name_text(value)
    ):
        raise SettingError("id", f"cannot be {value[:MAX_NAME]!r}")
    if len(os.fsencode(value)) > MAX_NAME:
        raise SettingError("id", f"is too long: {MAX_NAME} bytes at most")
    return value


def read_socket_path(value: object) -> Path:
    """An absolute path, for what it means must not depend on a folder. Raises SettingError."""
    if not isinstance(value, str) or not value.startswith("/") or not is_file_name_text(value):
        raise SettingError("socket-path", "expects an absolute path")
    return Path(value)
