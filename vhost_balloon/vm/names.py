"""VM names: which are valid, and which one a socket's file suggests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vhost_balloon.vm.setting_kinds import is_file_name_text

MAX_NAME: Final = 255
"""Bytes, as for a file name."""

_SUFFIXES: Final = (".sock", ".socket")


def read_name(value: str) -> str:
    """Return value if it is a valid VM name. Raises ValueError.

    The name is the last part of a path in qom-get, so it contains no "/". With a leading "." its
    control socket would be a hidden file.
    """
    if not value or value.startswith(".") or "/" in value or not is_file_name_text(value):
        raise ValueError(f"cannot be {value[:MAX_NAME]!r}")
    if len(os.fsencode(value)) > MAX_NAME:
        raise ValueError(f"is too long: {MAX_NAME} bytes at most")
    return value


def name_from_file(path: Path) -> str:
    """The name that a socket's file suggests, unchecked: web1 for web1.sock.

    Other suffixes stay: web.example.com and web.example.org are different names.
    """
    return path.stem if path.suffix in _SUFFIXES else path.name
