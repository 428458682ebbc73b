"""Folders that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def unreadable(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, also: str = "") -> None:
    """Have listdir() fail for a folder, and stat() for a file in it."""
    listdir, real_stat = os.listdir, os.stat

    def fail(path: Any) -> list[str]:
        if path == folder:
            raise OSError(number, os.strerror(number))
        return listdir(path)

    def fail_stat(path: Any, **options: Any) -> os.stat_result:
        if path == str(folder / also):
            raise OSError(number, os.strerror(number))
        return real_stat(path, **options)

    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(os, "stat", fail_stat)
