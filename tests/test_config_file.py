"""The file of --config: what it says, and each mistake with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.virtio_balloon import BalloonFeature
from tests.command import listening, run
from vhost_balloon.config import parse
from vhost_balloon.config_file import MAX_SIZE, ConfigFile, read_config_file
from vhost_balloon.errors import OperatorError
from vhost_balloon.guest_memory import DiscardMode, DiscardPolicy
from vhost_balloon.vm_settings import ALL_FEATURES, SocketOptions, VmSettings
from vhost_balloon.vm_spec import Origin, VmSpec

BASE = VmSettings(stats_interval=7.0)
REPORTING = int(BalloonFeature.PAGE_REPORTING)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vms.toml"


def read(path: Path, text: str | bytes) -> ConfigFile:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config_file(path, BASE)


def test_an_empty_file_is_no_vm(path: Path) -> None:
    file = read(path, "")
    assert (file.vms, file.defaults) == ((), BASE)


def test_all_that_a_file_can_say(path: Path) -> None:
    file = read(
        path,
        """
        [defaults]
        stats-interval = 30
        reporting = false
        [vm.web1]
        socket-path = "/run/web1.sock"
        [vm."db 1"]
        socket-path = "/run/db1.sock"
        reporting = true
        deflate-on-oom = false
        stats-interval = 0.5
        target = "1.5G"
        report-rate = "512M/s"
        discard = "always"
        discard-hugetlb = true
        discard-other-filesystems = true
        socket-mode = "0660"
        socket-group = "kvm"
        """,
    )
    defaults = VmSettings(ALL_FEATURES & ~REPORTING, stats_interval=30.0)
    assert file.defaults == defaults
    db1 = VmSettings(
        ALL_FEATURES & ~int(BalloonFeature.DEFLATE_ON_OOM),
        DiscardPolicy(DiscardMode.ALWAYS, hugetlb=True, other_filesystems=True),
        0.5,
        3 << 29,
        SocketOptions(0o660, "kvm"),
        512 << 20,
    )
    assert file.vms == (
        VmSpec("web1", defaults, Path("/run/web1.sock"), Origin.CONFIG),
        VmSpec("db 1", db1, Path("/run/db1.sock"), Origin.CONFIG),
    )


def test_lines_that_end_as_on_windows(path: Path) -> None:
    file = read(path, '[vm.a]\r\nsocket-path = "/a"\r\ntarget = 4096\r\n')
    assert [vm.settings.target for vm in file.vms] == [4096]


GOOD = '[vm.a]\nsocket-path = "/a"\n'


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("\n[vm.a\n", 2, "Expected ']'"),
        ("\n\n[vm.a]\nsocket-path = /a", 4, "Invalid value"),
        ('[vm.a]\nsocket-path = "/a', 2, "Unterminated string"),
        (GOOD + "\n[vm.a]\n", 4, "Cannot declare"),
        (GOOD + 'socket-path = "/b"\n', 3, "Cannot overwrite"),
        ("target = [1,\n2", 1, "Unclosed array"),
        (GOOD + "target = " + "9" * 5000, 3, "limit"),
        (GOOD + "x = " + "[" * 50_000, 3, "nested too deeply"),
        (b"# ok\n# \xff\n", 2, "no UTF-8"),
        ("\n[vms.a]", 2, "'vms' is not known"),
        ("\nreporting = true", 2, "'reporting' is not known"),
        ("\n\nvm = 5", 3, "'vm' is no table"),
        ("\n[[vm]]\nx = 1", 2, "'vm' is no table"),
        ("[vm]\n\na = 5", 3, "'a' is no table"),
        ("\n[[defaults]]", 2, "'defaults' is no table"),
        ("\n[defaults]\n\nfrobnicate = 1", 4, "'frobnicate' is not known"),
        ('[defaults]\nsocket-path = "/a"', 2, "'socket-path' is not known"),
        ("[defaults]\n# stats\nstats-interval = nan", 3, "'stats-interval' expects a number"),
        ("\n[vm.a]\n", 2, "VM 'a' has no 'socket-path'"),
        ('[vm.a]\n\nsocket-path = "a"', 3, "'socket-path' expects an absolute path"),
        ("[vm.a]\nsocket-path = 7", 2, "'socket-path' expects an absolute path"),
        ("\n" + GOOD.replace("vm.a", "vm.control"), 2, "cannot be 'control'"),
        ("\n" + GOOD.replace("vm.a", 'vm.""'), 2, "cannot be ''"),
        ("\n" + GOOD.replace("vm.a", 'vm.".a"'), 2, "cannot be '.a'"),
        ("\n" + GOOD.replace("vm.a", 'vm."a/b"'), 2, "cannot be 'a/b'"),
        (GOOD + "\nreporting = 1", 4, "'reporting' expects true or false"),
        (GOOD + 'target = "much"', 3, "'target' expects a size: 'much' is no size"),
        (GOOD + "target = 2.5", 3, "'target' expects a size above 0"),
        (GOOD + "target = 2024-01-01", 3, "'target' expects a size above 0"),
        (GOOD + "target.size = 1", 3, "'target' expects a size above 0"),
        (GOOD + "socket-mode = 0o660", 3, "'socket-mode' expects a string of octal digits"),
        (GOOD + "id = 'b'", 3, "'id' is not known"),
        (GOOD + '[vm.b]\n#\nsocket-path = "/a"', 5, "/a is given for two sockets"),
        ("vm.a.socket-path = '/a'\nvm.a.reporting = 'no'", 2, "'reporting' expects true"),
        ("vm = { a = { socket-path = '/a', stats = 0 } }", 1, "'stats' expects true"),
    ],
)
def test_mistakes_say_their_line(path: Path, text: str | bytes, line: int, what: str) -> None:
    with pytest.raises(OperatorError) as caught:
        read(path, text)
    message = str(caught.value)
    assert message.startswith(f"{path}: line {line}: "), message
    assert what in message
    assert "\n" not in message


def test_files_that_cannot_be_read(path: Path, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"cannot read .*: No such file"):
        read_config_file(path, BASE)
    with pytest.raises(OperatorError, match=r"not a regular file|Is a directory"):
        read_config_file(tmp_path, BASE)
    os.mkfifo(path)
    with pytest.raises(OperatorError, match="not a regular file"):
        read_config_file(path, BASE)
    path.unlink()
    with pytest.raises(OperatorError, match=f"larger than {MAX_SIZE >> 10} KiB"):
        read(path, "#" * (MAX_SIZE + 1))
    with pytest.raises(OperatorError, match="embedded null"):
        read_config_file(Path("/a\0b"), BASE)


# With the command line


def test_the_command_line_speaks_where_the_file_does_not(path: Path) -> None:
    path.write_text('[vm.a]\nsocket-path = "/run/a"\nstats-interval = 1\n')
    options = [f"--config={path}", "--no-reporting", "--socket-path=/run/b", "--stats-interval=3"]
    b, a = parse(options).vms
    assert (a.id, a.origin, a.settings.stats_interval) == ("a", Origin.CONFIG, 1)
    assert (b.id, b.origin, b.settings.stats_interval) == ("b", Origin.COMMAND_LINE, 3)
    assert a.settings.offered == b.settings.offered == ALL_FEATURES & ~REPORTING


@pytest.mark.parametrize(
    ("text", "options", "what"),
    [
        ("", [], "no VM"),
        (GOOD, ["--fd=3"], "--fd and --config cannot be used together"),
        (GOOD, ["--socket-path=/run/a.sock"], "line 1: two VMs are named 'a'"),
        ('[vm.b]\nsocket-path = "/a"', ["--socket-path=/a"], "line 2: /a is given for two sockets"),
        (GOOD, ["--control-socket=/a"], "line 2: /a is given for two sockets"),
        ("\n[vm.a]", ["--control-socket=/c"], "line 2: VM 'a' has no 'socket-path'"),
    ],
)
def test_mistakes_with_the_command_line(
    path: Path, text: str, options: list[str], what: str
) -> None:
    path.write_text(text)
    with pytest.raises(OperatorError, match=what):
        parse([f"--config={path}", *options])


def test_a_mistake_at_the_start_is_one_line_and_status_2(path: Path, tmp_path: Path) -> None:
    path.write_text("[vm.a]\ntarget = 0\n")
    done = run(f"--config={path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vhost-balloon: {path}: line 1: VM 'a' has no 'socket-path'\n"
    live = tmp_path / "live"
    path.write_text(f'[vm.a]\n\nsocket-path = "{live}"\n')
    with listening(live):
        done = run(f"--config={path}")
    text = f"{path}: line 3: {live} is in use: another process listens on it"
    assert (done.returncode, done.stderr) == (2, f"vhost-balloon: {text}\n")
