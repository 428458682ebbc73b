"""VM names: which are valid, and which one a socket's file suggests.

They are text (name_text.py), the same for the log, metrics, control clients and the record.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from vhost_balloon.name_text import name_text, system_name
from vhost_balloon.setting_kinds import is_file_name_text

MAX_NAME: Final = 255
"""Bytes, as for a file name."""

_SUFFIXES: Final = (".sock", ".socket")
_UNIT_ESCAPE: Final = re.compile(r"\\x[0-9a-f]{2}")


def read_name(value: str) -> str:
    """The text of a VM's name, given as the command line and system calls do. Raises ValueError.

    The name is the last part of a path in qom-get, so it contains no "/". With a leading "." its
    control socket would be a hidden file.
    """
    if not value:
        raise ValueError("is empty")
    if value.startswith(".") or "/" in value:
        raise ValueError(f"{value[:MAX_NAME]!r} begins with a dot or contains a slash")
    if not is_file_name_text(value):
        raise ValueError(f"cannot be {value[:MAX_NAME]!r}")
    if len(os.fsencode(value)) > MAX_NAME:
        raise ValueError(f"is too long: {MAX_NAME} bytes at most")
    return name_text(value)


def name_from_file(path: Path) -> str:
    """The name that a socket's file suggests, unchecked: web1 for web1.sock.

    Other suffixes stay: web.example.com and web.example.org are different names.
    """
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


def looks_escaped(name: str) -> bool:
    """Whether systemd-escape seems to have made the name (systemd.unit(5)). name: as text."""
    return _UNIT_ESCAPE.search(system_name(name)) is not None
