"""The files of --config: settings, and mistakes with their lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio_balloon import BalloonFeature
from tests.support.command import run
from vhost_balloon.config.config import parse
from vhost_balloon.config.file import read_files
from vhost_balloon.config.toml_file import MAX_SIZE
from vhost_balloon.errors import OperatorError
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.service.listeners import SocketOptions
from vhost_balloon.vm.settings import ALL_FEATURES, SETTINGS, VmSettings

BASE = VmSettings(stats_interval=7.0)
REPORTING = int(BalloonFeature.PAGE_REPORTING)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web1.toml"


def read(path: Path, text: str | bytes) -> VmSettings:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_files([path], BASE)


def test_an_empty_file_changes_nothing(path: Path) -> None:
    assert read(path, "") == read(path, "# defaults\n") == read_files([], BASE) == BASE


def test_all_settings_of_a_file(path: Path) -> None:
    text = """
        reporting = true
        deflate-on-oom = false
        must-tell-host = true
        stats = true
        free-page-hint = true
        page-poison = true
        stats-interval = 0.5
        target = "1.5G"
        report-rate = "512M/s"
        memory = "4G"
        discard = "always"
        discard-hugetlb = true
        discard-other-filesystems = true
        socket-mode = "0660"
        socket-group = "kvm"
        """
    assert read(path, text) == VmSettings(
        ALL_FEATURES & ~int(BalloonFeature.DEFLATE_ON_OOM),
        DiscardPolicy(DiscardMode.ALWAYS, hugetlb=True, other_filesystems=True),
        0.5,
        3 << 29,
        SocketOptions(0o660, "kvm"),
        512 << 20,
        4 << 30,
    )
    assert all(f"{key} = " in text for key in SETTINGS)


def test_windows_line_ends(path: Path) -> None:
    assert read(path, "stats = false\r\ntarget = 4096\r\n").target == 4096


def test_a_byte_order_mark(path: Path) -> None:
    assert read(path, "\ufefftarget = 4096").target == 4096


def test_later_files_win(path: Path, tmp_path: Path) -> None:
    path.write_text("target = 1\nreporting = false\nstats-interval = 1")
    later = tmp_path / "later.toml"
    later.write_text("target = 2\nreporting = true\n")
    assert read_files([path, later], BASE) == VmSettings(stats_interval=1.0, target=2)
    assert read_files([later, path], BASE).target == 1
    later.write_text("\ntarget = 0\n")
    with pytest.raises(OperatorError, match=f"^{later}: line 2: "):
        read_files([path, later], BASE)
    with pytest.raises(OperatorError, match=f"^{later}: line 2: "):
        read_files([later, path], BASE)


GOOD = "stats = true\n"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("\n[a\n", 2, "Expected ']'"),
        (GOOD + "\nx = always", 3, "Invalid value"),
        ('discard = "always', 1, "Unterminated string"),
        (GOOD + "[a]\n\n[a]\n", 4, "Cannot declare"),
        (GOOD + "stats = true\n", 2, "Cannot overwrite"),
        ("target = [1,\n2", 1, "Unclosed array"),
        (GOOD + "target = " + "9" * 5000, 2, "limit"),
        (GOOD + "x = " + "[" * 50_000, 2, "nested too deeply"),
        (b"# ok\n# \xff\n", 2, "not UTF-8"),
        # Values without quotes
        (GOOD + "\ndiscard = always", 3, "'discard' needs quotes around its value: write discard"),
        (GOOD + "target = 1G # all\n", 2, 'needs quotes around its value: write target = "1G"'),
        (GOOD + "report-rate=512M/s\r\nx = 1", 2, 'write report-rate = "512M/s"'),
        (GOOD + "\tsocket-mode = 0660", 2, 'write socket-mode = "0660"'),
        (GOOD + "socket-group = kvm", 2, 'write socket-group = "kvm"'),
        ("discard = sometimes\nx", 1, "'discard' expects one of auto, always, never"),
        (GOOD + "reporting = no", 2, "'reporting' expects true or false"),
        (GOOD + "reporting = False", 2, "'reporting' expects true or false"),
        (GOOD + "stats-interval = 10s", 2, "'stats-interval' expects a number of seconds"),
        (GOOD + "memory = 4GB", 2, "such as 512M: did you mean 4G?"),
        (GOOD + "target = 1\ntarget = 2\n", 3, "'target' is given twice, first in line 2: Cannot"),
        # Keys of files for several VMs
        (
            "\n[vm.web1]\nsocket-path = '/a'",
            2,
            "'vm' is for several VMs, and this daemon serves one: write one",
        ),
        ("\n[vm.web1.example]\ntarget = '1G'", 2, "'vm' is for several VMs"),
        ("\n[vm]\n", 2, "one file for each VM, with its keys at the top level"),
        (GOOD + "\nvm.web1.stats = true", 3, "'vm' is for several VMs"),
        (GOOD + "\nvm = 5", 3, "'vm' is for several VMs"),
        ("# all\n[defaults]\nstats = true", 2, "'defaults' is for several VMs"),
        (GOOD + '\nsocket-path = "/a"', 3, "give --socket-path"),
        # Unknown keys and tables
        ("\n[web1]\nstats = 1", 2, "'web1' is not known"),
        ("\n[[web1]]", 2, "'web1' is not known"),
        ("\n[web1.example.com]", 2, "'web1' is not known: settings stand at"),
        (GOOD + "\nstats_interval = 1", 3, "'stats_interval' is not known"),
        (GOOD + "\nno-stats = true", 3, "'no-stats' is not known"),
        (GOOD + "name = 'b'", 2, "'name' is not known"),
        (GOOD + "Stats = true", 2, "'Stats' is not known"),
        (GOOD + "\nsocket_path = '/a'", 3, "give --socket-path"),
        (GOOD + "stats_interval = 1", 2, "not known: did you mean 'stats-interval'?"),
        (GOOD + "stats-intervall = 1", 2, "did you mean 'stats-interval'?"),
        (GOOD + "--discard = 'always'", 2, "did you mean 'discard'?"),
        (GOOD + "Report_Rates = 1", 2, "did you mean 'report-rate'?"),
        (GOOD + "\nno_deflate_on_oom = true", 3, "write deflate-on-oom = false"),
        (GOOD + "\nmetrics_address = ':9'", 3, "give --metrics-address on the command line"),
        (GOOD + "\n[settings]\ntarget = 1", 3, "without tables and dotted keys"),
        (GOOD + "\nx = 1", 3, "'x' is not known"),
        (GOOD + "x" * 60_000 + " = 1", 2, "is not known"),
        # After keys that are longer than a line
        (GOOD + "target = [\n" + "1,\n" * 50 + "]\nx = 3", 54, "'x' is not known"),
        ('stats = """\n[a]\n"""\nx = 1', 4, "'x' is not known"),
        ("stats = { a = [\n'}' ] }\n# x\nx = 1", 4, "'x' is not known"),
        ("stats.a.b = 1\n\nx = 1", 3, "'x' is not known"),
        ("'stats' = [[\n], # ]]\n]\n\"x\" = 1", 4, "'x' is not known"),
        # Keys that are given twice
        (GOOD + "\nstats = [\n1,\n2]\n", 3, "'stats' is given twice, first in line 1: "),
        (GOOD + "\n'stats' = false", 3, "'stats' is given twice, first in line 1: "),
        (GOOD + "\n[stats]\na = 1\n", 3, "'stats' is given twice, first in line 1: "),
        ("target = 1\n\ntarget.x = [\n2]", 3, "'target' is given twice, first in line 1: "),
        ("[a]\nb = 1\n\nb = [\n2]\n", 4, "line 4: 'a.b' is given twice, first in line 2: "),
        ("a = 1\nx = {a = 1, a = 2}", 2, "Duplicate inline table key 'a'"),
        # Line ends, and characters that no TOML has
        ("stats = true\rtarget = 1\rx = 1", 1, "a carriage return ends no line"),
        ("stats = true\r\n\r\nx = 1\r\n", 3, "'x' is not known"),
        ("\n\tx\t=\t1", 2, "'x' is not known"),
        ("\ufeff\nx = 1", 2, "'x' is not known"),
        (GOOD + "\ufeffx = 1", 2, "Invalid statement"),
        (GOOD + "x = '\0'", 2, "invalid character"),
        (GOOD + "\0", 2, "Invalid statement"),
        ("stats = true".encode("utf-16"), 1, "not UTF-8"),
        (GOOD.encode() + b"\n# k\xe4se", 3, "not UTF-8"),
        # Values
        ("# stats\n\nstats-interval = nan", 3, "'stats-interval' expects a number"),
        (GOOD + "\nreporting = 1", 3, "'reporting' expects true or false"),
        (GOOD + "\n[reporting]", 3, "'reporting' expects true or false"),
        (GOOD + 'target = "much"', 2, "'target' expects a size above 0"),
        (GOOD + 'target = "1,5 GB"', 2, "a size above 0, such as 512M: did you mean 1.5G?"),
        (GOOD + 'report-rate = "1M/h"', 2, "'report-rate' expects a rate above 0"),
        (GOOD + 'report-rate = "8MB/s"', 2, "such as 512M/s: did you mean 8M?"),
        (GOOD + "target = 2.5", 2, "'target' expects a size above 0"),
        (GOOD + "target = 2024-01-01", 2, "'target' expects a size above 0"),
        (GOOD + "target.size = 1", 2, "'target' expects a size above 0"),
        (GOOD + "target = [\n1,\n2]\nstats-interval = 1", 2, "'target' expects a size above 0"),
        (GOOD + "socket-mode = 0o660", 2, "'socket-mode' expects a string of octal digits"),
    ],
)
def test_mistakes_say_their_line(path: Path, text: str | bytes, line: int, what: str) -> None:
    with pytest.raises(OperatorError) as caught:
        read(path, text)
    message = str(caught.value)
    assert message.startswith(f"{path}: line {line}: "), message
    assert what in message
    assert "\n" not in message


def test_any_bytes_are_settings_or_a_mistake(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "web1.toml"
    words = st.sampled_from(
        [*SETTINGS, "vm", "[", "]", "=", " ", ".", "\n", "\r\n", '"', "#", "0660", "1", "true", "{"]
    ).map(str.encode)

    @given(st.lists(words | st.binary(max_size=3), max_size=20).map(b"".join))
    def any_bytes(data: bytes) -> None:
        mistake = f"{path}: line "
        try:
            read(path, data)
        except OperatorError as error:
            mistake = str(error)
        assert mistake.startswith(f"{path}: line ")

    any_bytes()


def test_files_that_cannot_be_read(path: Path, tmp_path: Path) -> None:
    def read_one(path: Path) -> None:
        read_files([path], BASE)

    with pytest.raises(OperatorError, match=r"cannot read .*: No such file"):
        read_one(path)
    with pytest.raises(OperatorError, match=r"not a regular file|Is a directory"):
        read_one(tmp_path)
    os.mkfifo(path)
    with pytest.raises(OperatorError, match="not a regular file"):
        read_one(path)
    path.unlink()
    with pytest.raises(OperatorError, match=f"larger than {MAX_SIZE >> 10} KiB"):
        read(path, "#" * (MAX_SIZE + 1))
    with pytest.raises(OperatorError, match="embedded null"):
        read_one(Path("/a\0b"))


# With the command line


def test_files_override_the_command_line(path: Path, tmp_path: Path) -> None:
    path.write_text("stats-interval = 1\nreporting = true\n")
    later = tmp_path / "later.toml"
    later.write_text("stats-interval = 2\n")
    options = ["--socket-path=/run/a", "--no-reporting", "--no-stats", "--stats-interval=3"]
    config = parse([*options, f"--config={path}", f"--config={later}"])
    stats = int(BalloonFeature.STATS_VQ)
    assert config.base == VmSettings(ALL_FEATURES & ~REPORTING & ~stats, stats_interval=3.0)
    assert config.settings == VmSettings(ALL_FEATURES & ~stats, stats_interval=2.0)
    assert config.files == (path, later)
    assert read_files(config.files, config.base) == config.settings, "as a reload does"


def test_the_paths_of_files_are_absolute(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("target = 1")
    monkeypatch.chdir(path.parent)
    assert parse(["--fd=3", f"--config={path.name}"]).files == (path,)


def test_files_are_not_read_if_settings_are_given(path: Path) -> None:
    path.write_text("\ntarget = 0")
    arguments, before = ["--socket-path=/run/a", f"--config={path}"], VmSettings(target=5)
    with pytest.raises(OperatorError, match=f"^{path}: line 2: "):
        parse(arguments)
    assert parse(arguments, settings=before).settings is before


def test_a_mistake_at_the_start_is_one_line_and_status_2(path: Path, tmp_path: Path) -> None:
    path.write_text("\n[vm.a]\ntarget = 0\n")
    for options in (["--check-config"], [f"--socket-path={tmp_path}/a"]):
        done = run(*options, f"--config={path}")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"vhost-balloon: {path}: line 2: 'vm' is for several VMs, and this daemon serves one: "
            "write one file for each VM, with its keys at the top level\n"
        )
    assert list(tmp_path.iterdir()) == [path]
