"""What is installed is whole: the wheel holds all packages and its commands run from anywhere."""

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


def test_wheel_holds_the_files_that_vhost_balloonctl_prints(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in (
            "monitoring/alerts.yml",
            "monitoring/dashboard.json",
            *(f"completion/{name}" for name in COMPLETION_SCRIPTS.values()),
        ):
            path = f"vhost_balloon/{name}"
            assert archive.read(path) == (ROOT / path).read_bytes()


def test_wheel_holds_all_that_install_units_puts_in_place(wheel: Path) -> None:
    shipped = {path.name: path.read_bytes() for path in (ROOT / "systemd").iterdir()}
    with zipfile.ZipFile(wheel) as archive:
        folder = "vhost_balloon/units/"
        names = [name for name in archive.namelist() if name.startswith(folder)]
        assert {name[len(folder) :]: archive.read(name) for name in names} == shipped
    assert set(shipped) == set(units.FOLDERS)


DOCUMENTED = ("vhost-balloon", "vhost-balloon-hub", "vhost-balloonctl")


def test_wheel_installs_a_manual_page_for_each_documented_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        data = {name for name in archive.namelist() if ".data/" in name}
    folder = f"vhost_balloon-{vhost_balloon.__version__}.data/data/share/man/man1"
    assert data == {f"{folder}/{name}.1" for name in DOCUMENTED}


@pytest.mark.parametrize("module", ["vhost_balloon", "vhost_balloon.ctl", "vhost_balloon.demo"])
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
