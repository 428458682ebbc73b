"""--check-config: what it refuses, and what it warns of."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.command import daemon, run
from tests.support.end_to_end import LogLines
from tests.support.paths import ROOT
from vhost_balloon import __version__
from vhost_balloon.config.config import parse
from vhost_balloon.daemon.check_config import check_config
from vhost_balloon.errors import OperatorError

VERSION = f"vhost-balloon {__version__}"


async def test_groups_are_checked() -> None:
    await check_config(parse(["--check-config", "--socket-path=/run/a", "--socket-group=0"]))
    for which in ("socket", "control"):
        with pytest.raises(OperatorError, match="there is no group 'no-such-group'"):
            await check_config(parse(["--check-config", f"--{which}-group=no-such-group"]))


async def test_what_can_only_be_a_mistake_is_a_warning(log_lines: LogLines) -> None:
    await check_config(parse(["--check-config", "--memory=4096", "--report-rate=512"]))
    assert log_lines.having("warning: 'memory': 4096 is 4 KiB", "write 4096M for MiB")
    assert log_lines.having("warning: 'report-rate': 512 B a second is less")


async def test_a_group_of_a_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "web1.toml"
    path.write_text("socket-group = 'no-such-group'")
    with pytest.raises(OperatorError, match="there is no group 'no-such-group'"):
        await check_config(parse(["--check-config", f"--config={path}", "--socket-group=0"]))


def test_a_check_has_no_effect_on_a_daemon_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web1.toml").write_text("target = '1G'\nsocket-mode = '0666'\n")
    options = [
        f"--socket-path={tmp_path}/web1.sock",
        f"--control-socket={tmp_path}/web1.control",
        f"--config={tmp_path}/web1.toml",
        "--metrics-address=:0",
    ]

    def contents() -> dict[Path, tuple[int, int, int]]:
        found = {path: path.lstat() for path in tmp_path.iterdir()}
        return {at: (info.st_ino, info.st_mode, info.st_mtime_ns) for at, info in found.items()}

    with daemon(*options) as serving, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{tmp_path}")
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}")
        monkeypatch.setenv("FDSTORE", "16")
        before = contents()
        done = run(*options, "--check-config")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{VERSION}\n", "")
        (tmp_path / "web1.toml").write_text("target = 0\n")
        done = run(*options, "--check-config")
        assert (done.returncode, done.stdout) == (2, "")
        assert "web1.toml: line 1: 'target' expects a size above 0" in done.stderr
        after = contents()
        assert all(after[path] == before[path] for path in after if path.suffix != ".toml")
        assert after.keys() == before.keys()
        with pytest.raises(BlockingIOError):
            manager.recv(1)
        assert serving.end()[0] == 0


async def test_certificates_of_a_socket_that_is_not_handed_to_a_check() -> None:
    """systemd hands none to ExecReload=."""
    tls = ROOT / "tests/support/tls"
    good = [f"--metrics-certificate={tls}/first.pem", f"--metrics-key={tls}/first.key.pem"]
    await check_config(parse(["--check-config", *good]))
    bad = [good[0], f"--metrics-key={tls}/second.key.pem"]
    with pytest.raises(OperatorError, match="key"):
        await check_config(parse(["--check-config", *bad]))
    with pytest.raises(OperatorError, match="needs --metrics-address"):
        parse(["--socket-path=/run/a", *good])
