"""A VM's name, and the reserved names of sockets that are handed over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vhost_balloon.vm.settings import SettingError, is_file_name_text

MAX_NAME: Final = 255
"""Bytes, as in a file's name."""

_SUFFIXES: Final = (".sock", ".socket")


def read_name(value: str) -> str:
    """A VM's name. Raises SettingError.

    It is the last part of a path in qom-get, so it has no "/". A control socket of a name that
    begins with "." would be a hidden file.
    """
    if not value or value.startswith(".") or "/" in value or not is_file_name_text(value):
        raise SettingError("name", f"cannot be {value[:MAX_NAME]!r}")
    if len(os.fsencode(value)) > MAX_NAME:
        raise SettingError("name", f"is too long: {MAX_NAME} bytes at most")
    return value


def name_from_file(path: Path) -> str:
    """The name that a socket's file suggests, not checked: web1 from web1.sock.

    Other suffixes stay, so that web.example.com and web.example.org are two names.
    """
    return path.stem if path.suffix in _SUFFIXES else path.name
