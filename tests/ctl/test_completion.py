"""vhost-balloonctl's shell completion."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.completion_scripts import FOLDER, generate
from tests.support.ctl_command import run
from tests.support.parsers import commands
from vhost_balloon.ctl.options import COMPLETION_SCRIPTS, build_parser


def script(shell: str) -> str:
    return (FOLDER / COMPLETION_SCRIPTS[shell]).read_text()


NAMES = ("web1", "web 2", "db")


def complete(tmp_path: Path, *words: str, names: Sequence[str] = NAMES) -> list[str]:
    """Return bash's completions of the last word; a stub of the tool prints VM names."""
    stub = tmp_path / "vhost-balloonctl"
    lines = shlex.quote("\n".join(names))
    stub.write_text(f'#!/bin/sh\necho "$@" >>calls\nprintf "%s\\n" {lines}\n')
    stub.chmod(0o755)
    quoted = " ".join(map(shlex.quote, ("vhost-balloonctl", *words)))
    program = f"""{script("bash")}
COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _vhost_balloonctl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-uc", program], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout != "\n" else []


def test_bash_completes_commands_options_and_vms(tmp_path: Path) -> None:
    assert complete(tmp_path, "") == list(commands(build_parser()))
    assert complete(tmp_path, "st") == ["status", "stats"]
    assert complete(tmp_path, "status", "") == ["web1", "web\\ 2", "db"]
    assert complete(tmp_path, "set", "--wait", "--timeout", "=", "5", "w") == ["web1", "web\\ 2"]
    assert complete(tmp_path, "set", "--w") == ["--wait"]
    assert complete(tmp_path, "set", "web1", "") == []
    assert complete(tmp_path, "monitoring", "") == ["rules", "dashboard"]
    assert complete(tmp_path, "policy-mode", "o") == ["off", "on"]
    assert complete(tmp_path, "policy", "--explain", "=", "d") == ["db"]
    assert complete(tmp_path, "policy-release", "w") == ["web1", "web\\ 2"]
    assert complete(tmp_path, "completion", "z") == ["zsh"]
    assert complete(tmp_path, "--cont") == ["--control-socket"]
    assert complete(tmp_path, "--fol") == ["--folder"]
    for option in ("--control-socket", "--folder"):
        assert complete(tmp_path, option, "=", "vhost-b") == ["vhost-balloonctl"]
    for command in ("upgrade", "reload"):
        assert complete(tmp_path, command, "d") == ["db"]
        assert complete(tmp_path, command, "db", "w") == ["web1", "web\\ 2"]
        assert complete(tmp_path, command, "--a") == ["--all"]


def test_bash_quotes_names_for_the_shell(tmp_path: Path) -> None:
    names = ["raw\\udcff", "a$(touch x)", "*", "it's", '"', "`touch x`", "\\x20", "-x", "\u9b5a"]
    found = complete(tmp_path, "status", "", names=names)
    assert [shlex.split(word) for word in found[:-1]] == [[name] for name in names[:-1]]
    assert not (tmp_path / "x").exists()


def test_bash_passes_the_folder_and_the_control_socket_on(tmp_path: Path) -> None:
    assert complete(tmp_path, "--control-socket", "=", "/x y", "status", "d") == ["db"]
    assert complete(tmp_path, "pause", "--folder", "/z", "d") == ["db"]
    assert complete(tmp_path, "install-units", "--root", "=", "/r", "--dry") == ["--dry-run"]
    calls = (tmp_path / "calls").read_text()
    assert calls == "--control-socket /x y list --names\n--folder /z list --names\n"


def test_zsh_completes_commands_options_and_vms() -> None:
    text = script("zsh")
    assert text.startswith("#compdef vhost-balloonctl\n")
    for name in commands(build_parser()):
        assert f"    {name}:" in text
    assert '"--wait[wait until the target is reached]"' in text
    assert text.count(r'\`list\`:_vhost_balloonctl_vms"') == 9
    assert '"*:names of VMs:_vhost_balloonctl_vms"' in text
    assert text.count(':PATH:_files"') == text.count(":PATH:") > 0
    assert '"--timeout=[stop waiting after this time]:SECONDS:"' in text


@pytest.mark.parametrize("shell", COMPLETION_SCRIPTS)
def test_the_script_matches_the_command_line(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it does not, run python -m tests.support.completion_scripts."""
    assert script(shell) == generate(shell)
    assert run(capsys, "completion", shell) == (0, script(shell), "")
