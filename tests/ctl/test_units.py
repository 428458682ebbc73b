"""vhost-balloonctl install-units."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from vhost_balloon.ctl import units
from vhost_balloon.ctl.__main__ import main

SOURCES = ROOT / "systemd"
BINARY = "/opt/vhost-balloon/bin/vhost-balloon"


def files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_every_file_is_installed_with_the_daemons_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install-units", f"--root={tmp_path}", f"--binary={BINARY}"]) == 0
    found = files(tmp_path)
    assert set(found) == {
        *(f"usr/lib/systemd/system/{name}" for name in units.FOLDERS if name.endswith(".socket")),
        "usr/lib/systemd/system/vhost-balloon@.service",
        "usr/lib/systemd/system/vhost-balloon-examiner.service",
        "usr/lib/systemd/system/vhost-balloon-hub.service",
        "usr/lib/sysusers.d/vhost-balloon.conf",
        "usr/lib/tmpfiles.d/vhost-balloon.conf",
        "usr/share/qemu/vhost-user/50-vhost-balloon.json",
    }
    assert "@BINARY@" not in "".join(found.values())
    commands = {"@": f"{BINARY} --name=%i", "-hub": f"{BINARY}-hub --control-mode=0660"}
    for name, started in commands.items():
        text = found[f"usr/lib/systemd/system/vhost-balloon{name}.service"]
        assert f"\nExecStart={started} $VHOST_BALLOON_" in text
    examiner = found["usr/lib/systemd/system/vhost-balloon-examiner.service"]
    assert f"\nExecStart={BINARY}-examiner\n" in examiner
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in found} == {0o644}
    assert sorted(capsys.readouterr().out.split()) == sorted(str(tmp_path / name) for name in found)


def test_qemus_file_follows_qemus_schema(tmp_path: Path) -> None:
    """Source: QEMU's docs/interop/vhost-user.json, VhostUserBackend."""
    main(["install-units", f"--root={tmp_path}", f"--binary={BINARY}"])
    text = (tmp_path / "usr/share/qemu/vhost-user/50-vhost-balloon.json").read_text()
    found = json.loads(text)
    assert (found["type"], found["binary"]) == ("balloon", BINARY)
    assert set(found) == {"description", "type", "binary"}


def test_a_dry_run_only_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["install-units", f"--root={tmp_path}", f"--binary={BINARY}", "--prefix=/usr/local"]
    assert main([*command, "--dry-run", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert files(tmp_path) == {}
    assert main(command) == 0
    assert sorted(listed) == sorted(str(tmp_path / name) for name in files(tmp_path))
    assert all("/usr/local/" in name for name in listed)


def test_remove_removes_the_installed_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "usr/lib/systemd/system/other.service"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    main(["install-units", f"--root={tmp_path}", f"--binary={BINARY}"])
    installed = capsys.readouterr().out
    assert main(["install-units", f"--root={tmp_path}", "--remove", "--dry-run"]) == 0
    assert capsys.readouterr().out == installed
    assert main(["install-units", f"--root={tmp_path}", "--remove"]) == 0
    assert capsys.readouterr().out == installed
    assert files(tmp_path) == {"usr/lib/systemd/system/other.service": "mine"}
    assert main(["install-units", f"--root={tmp_path}", "--remove", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_units_of_former_versions_are_removed_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "usr/lib/systemd/system"
    former = {
        str(folder / name)
        for name in ("vhost-balloon.service", "vhost-balloon.socket", "vhost-balloon-vm@.socket")
    }
    command = ["install-units", f"--root={tmp_path}", f"--binary={BINARY}"]
    main(command)
    assert former.isdisjoint(capsys.readouterr().out.split()), "they are not installed"
    for name in former:
        Path(name).write_text("[Unit]")
    for words in (["--remove", "--dry-run"], ["--remove"]):
        main([*command, *words])
        assert former <= set(capsys.readouterr().out.split())
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("binary", "said"),
    [
        ("/root/venv/bin/vhost-balloon", "services cannot see"),
        ("/home/a/vhost-balloon", "services cannot see"),
        ("/opt/a b/vhost-balloon", "has characters that a unit cannot name"),
        ("/opt/%i/vhost-balloon", "has characters that a unit cannot name"),
        ("/opt/$a/vhost\nballoon", "has characters that a unit cannot name"),
    ],
)
def test_a_path_that_a_service_could_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], binary: str, said: str
) -> None:
    assert main(["install-units", f"--root={tmp_path}", f"--binary={binary}"]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert files(tmp_path) == {}


def test_a_write_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "usr").write_text("no folder")
    for words in ([], ["--remove"]):
        command = ["install-units", f"--root={tmp_path}", f"--binary={BINARY}", *words]
        assert main(command) == 1
        assert re.fullmatch(
            r"vhost-balloonctl: cannot (write|remove) .*: Not a directory\n",
            capsys.readouterr().err,
        )


def test_the_daemon_beside_the_tool_takes_precedence(tmp_path: Path) -> None:
    for name in ("vhost-balloonctl", "vhost-balloon"):
        program = tmp_path / name
        program.write_text(
            "import sys\nfrom vhost_balloon.ctl import units\nprint(units._installed())\n"
        )
        program.chmod(0o755)
    command = [sys.executable, str(tmp_path / "vhost-balloonctl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/vhost-balloon\n"


def hardening(name: str) -> list[str]:
    lines = (SOURCES / name).read_text().splitlines()
    start = lines.index("CapabilityBoundingSet=")
    return lines[start : lines.index("# Gaps, and why:")]


@pytest.mark.parametrize("name", ["vhost-balloon-examiner.service", "vhost-balloon-hub.service"])
def test_all_services_are_hardened_alike(name: str) -> None:
    assert len(hardening("vhost-balloon@.service")) > 20
    assert hardening(name) == hardening("vhost-balloon@.service")
