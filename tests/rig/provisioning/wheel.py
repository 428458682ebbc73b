"""Builds our own wheel as a user would get it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT

SHIPPED: Final = ("protocol", "vhost_balloon", "systemd", "pyproject.toml", "README.md", "LICENSE")


def build_wheel(folder: Path, source: Path = ROOT) -> Path:
    """Build it into folder, from a copy of the checkout at source without .git."""
    copy = folder / "source"
    copy.mkdir()
    for name in SHIPPED:
        path = source / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy)
    # Isolated builds would fetch packages that the test environment already has.
    command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy]
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))
