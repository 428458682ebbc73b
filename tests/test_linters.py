"""Lint, format, types, and the size of files and folders are tests like all others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.sources import imports

SOURCES = sorted(
    path
    for folder in ("protocol", "tests", "vhost_balloon")
    for path in (ROOT / folder).rglob("*.py")
    if path.is_file()
)


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["ruff-check", "ruff-format", "mypy"],
)
def test_linter(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def names_test_file(name: str) -> bool:
    """Whether a dotted name is a test file's, or that of a definition in one."""
    *_, module, last = name.split(".")
    return module.startswith("test_") or (
        last.startswith("test_") and ROOT.joinpath(*name.split(".")).with_suffix(".py").exists()
    )


def test_no_file_imports_a_test_file() -> None:
    found = [
        (str(source.relative_to(ROOT)), name)
        for source in SOURCES
        for name in imports(source.read_text())
        if name.startswith("tests.") and names_test_file(name)
    ]
    assert found == []


def test_a_folder_is_not_too_full() -> None:
    for folder in {source.parent for source in SOURCES}:
        files = [path for path in folder.iterdir() if path.is_file()]
        assert len(files) <= 21, folder


def test_a_file_is_not_too_long() -> None:
    assert [str(path) for path in SOURCES if len(path.read_text().splitlines()) > 350] == []
