"""The wheel is complete: it holds every package and file, and its commands run from any folder."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import vhost_balloon
from tests.rig.provisioning.wheel import build_wheel
from tests.support.paths import ROOT
from vhost_balloon.ctl import units
from vhost_balloon.ctl.options import COMPLETION_SCRIPTS

PACKAGES = ("protocol", "vhost_balloon")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy without .git."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_every_module_and_nothing_else_at_its_top(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(p.relative_to(ROOT)) for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    assert modules <= names
    name = f"vhost_balloon-{vhost_balloon.__version__}"
    tops = {*PACKAGES, f"{name}.dist-info", f"{name}.data"}
    assert {name.split("/")[0] for name in names} == tops


def test_wheel_holds_alert_rules_and_dashboard(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in (
            "monitoring/alerts.yml",
            "monitoring/dashboard.json",
            *(f"completion/{name}" for name in COMPLETION_SCRIPTS.values()),
        ):
            path = f"vhost_balloon/{name}"
            assert archive.read(path) == (ROOT / path).read_bytes()


def test_wheel_holds_every_file_that_install_units_installs(wheel: Path) -> None:
    files = [path for path in (ROOT / "systemd").iterdir() if path.name != "README.md"]
    shipped = {path.name: path.read_bytes() for path in files}
    with zipfile.ZipFile(wheel) as archive:
        folder = "vhost_balloon/units/"
        names = [name for name in archive.namelist() if name.startswith(folder)]
        assert {name[len(folder) :]: archive.read(name) for name in names} == shipped
    assert set(shipped) == set(units.FOLDERS)


MAN_PAGES = {
    "man1/vhost-balloon.1",
    "man1/vhost-balloon-examiner.1",
    "man1/vhost-balloon-hub.1",
    "man1/vhost-balloonctl.1",
    "man5/vhost-balloon.toml.5",
    "man5/vhost-balloon-hub.toml.5",
    "man7/vhost-balloon-qmp.7",
}


def test_wheel_installs_the_manual_pages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        data = {name for name in archive.namelist() if ".data/" in name}
    folder = f"vhost_balloon-{vhost_balloon.__version__}.data/data/share/man"
    assert data == {f"{folder}/{name}" for name in MAN_PAGES}


@pytest.mark.parametrize(
    "module",
    ["vhost_balloon", "vhost_balloon.ctl", "vhost_balloon.demo", "vhost_balloon.examiner"],
)
def test_installed_commands_run_from_an_empty_folder(
    wheel: Path, tmp_path: Path, module: str
) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=empty,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--help" in done.stdout


def test_version_is_stated_once() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == vhost_balloon.__version__
    # QMP's greeting has three numbers.
    assert all(part.isdecimal() for part in vhost_balloon.__version__.split("."))
    assert vhost_balloon.__version__.count(".") == 2
