"""The README files: short, complete, and without references to what is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

README = ROOT / "README.md"
DOCUMENTS = [
    README,
    ROOT / "systemd/README.md",
    ROOT / "vhost_balloon/README.md",
    ROOT / "tests/README.md",
    ROOT / "tests/benchmarks/README.md",
    ROOT / "tests/policy/README.md",
]
OTHERS = {
    *("--append", "--create", "--groups", "--now"),  # usermod, systemd
    *("--editable", "--quiet"),  # pip
    "--dist",  # pytest
    *("--guest-memory", "--json", "--rounds"),  # tests.benchmarks
    *("--markdown", "--plot", "--processes", "--rules", "--scenario", "--seeds"),  # tests.policy
    *("--minutes", "--real", "--seconds", "--seed", "--simulated"),  # tests.soak, tests.fuzz
}
"""Options of other programs."""
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) < 240


def test_the_second_code_block_runs_the_tests() -> None:
    """.ci/run executes it word for word."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert [block.count("\n") for block in blocks] == [1, 1]
    assert blocks[0].endswith("vhost-balloon-demo\n")
    run = ".venv/bin/python -m pytest"
    every = f"{run} -n auto -m 'not slow' && {run} -n 2 --dist loadfile -m slow\n"
    assert blocks[1].endswith(every), "all tests, none twice"


def test_readme_names_every_room() -> None:
    rooms = {path.parent.name for path in ROOT.glob("vhost_balloon/*/__init__.py")}
    assert rooms <= set(re.findall(r"`(\w+)/`", README.read_text()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_modules_exist(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\(([^)#]+)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    modules = re.findall(r"`([\w/-]+/[\w.-]+\.(?:py|md|\d))`", text)
    folders = (path.parent, ROOT, ROOT / "vhost_balloon")
    assert [name for name in modules if not any((at / name).exists() for at in folders)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_names_an_option_that_is_not_there(path: Path) -> None:
    """The manual pages name all of ours: tests/test_man.py holds them to argparse."""
    pages = "".join(page.read_text() for page in ROOT.glob("vhost_balloon/man/*"))
    known = {*OPTION.findall(pages.replace("\\-", "-")), *OTHERS}
    assert set(OPTION.findall(path.read_text())) - known == set()
