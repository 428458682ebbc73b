"""The benchmarks' own C programs, built with gcc into the rig's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.rig.provisioning.packages import cache_folder

_FOLDER = Path(__file__).parent


class NoCompiler(Exception):
    """A benchmark needs gcc, which is missing or failed."""


def program(name: str, *options: str) -> Path:
    """Build NAME.c of this folder unless already built. Raises NoCompiler."""
    source = _FOLDER / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes() + repr(options).encode()).hexdigest()[:10]
    built = cache_folder() / "benchmarks" / f"{name}-{digest}"
    if built.exists():
        return built
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("gcc is needed to build the benchmarks' C programs")
    built.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staged = tempfile.mkstemp(dir=built.parent)
    os.close(descriptor)
    command = [compiler, "-O2", "-Wall", "-Werror", *options, "-o", staged, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        Path(staged).unlink()
        raise NoCompiler(done.stderr)
    Path(staged).chmod(0o755)
    Path(staged).rename(built)
    return built
