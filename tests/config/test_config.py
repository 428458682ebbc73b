"""The command line: the VM's front end, its name, options of settings, contradictions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.config.config import Config, parse
from vhost_balloon.config.sockets import FRONT_END
from vhost_balloon.errors import OperatorError
from vhost_balloon.name_text import system_name
from vhost_balloon.service.listeners import SocketOptions
from vhost_balloon.vm.names import MAX_NAME, looks_escaped, name_from_file, read_name
from vhost_balloon.vm.settings import FILES_ONLY, SETTINGS, Setting, VmSettings, changed_settings

ONE_EACH = r"one vhost-balloon for each \(under systemd vhost-balloon@NAME\.socket\)"
Handed = dict[str, Path | None]


def mistake(arguments: list[str], handed: Handed | None = None) -> str:
    with pytest.raises(OperatorError) as caught:
        parse(arguments, handed)
    text = str(caught.value)
    assert "\n" not in text
    return text


# The front end


def test_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--socket-path=web1.sock", "--control-socket=web1.control"]
    assert parse(arguments) == Config(
        name="web1",
        socket_path=tmp_path / "web1.sock",
        fd=None,
        settings=VmSettings(),
        base=VmSettings(),
        files=(),
        control_socket=Path("web1.control"),
        control_access=SocketOptions(),
        metrics=None,
        log_level="info",
        log_format="text",
        arguments=tuple(arguments),
    )
    assert parse(arguments).control_path == tmp_path / "web1.control"


def test_a_descriptor() -> None:
    config = parse(["--fd=7"])
    assert (config.name, config.fd, config.socket_path) == ("fd7", 7, None)
    assert parse(["--fd=7", "--name=web1"]).name == "web1"


def test_a_socket_that_is_handed_over() -> None:
    handed: Handed = {
        "control": Path("/run/web1.control"),
        FRONT_END: Path("/run/web1.sock"),
        "metrics": None,
    }
    config = parse([], handed)
    assert config.name == "web1"
    assert (config.socket_path, config.control_socket) == (
        Path("/run/web1.sock"),
        Path("/run/web1.control"),
    )
    assert config.metrics is not None


@pytest.mark.parametrize(
    "path", ["/run/vm/web1.sock", "/run/vm/../vm/web1.sock", "{link}/vm/web1.sock"]
)
def test_the_path_of_a_socket_that_is_handed_over(tmp_path: Path, path: str) -> None:
    """In any spelling, such as through /var/run."""
    link = tmp_path / "link"
    link.symlink_to("/run")
    handed: Handed = {"a": Path("/run/vm/web1.sock"), "control": Path("/run/vm/c")}
    control = path.replace("web1.sock", "c")
    config = parse(
        [
            f"--socket-path={path}".format(link=link),
            f"--control-socket={control}".format(link=link),
        ],
        handed,
    )
    assert config.name == "a"
    assert (config.socket_path, config.control_socket) == (handed["a"], handed["control"])


@pytest.mark.parametrize(
    ("arguments", "handed"),
    [
        (["--socket-path=/a", "--socket-path=/b"], {}),
        (["--socket-path=/a", "--socket-path=/a"], {}),
        (["--socket-path=/a", "--socket-path=/b"], {"a": Path("/a")}),
        (["--fd=3", "--fd=4"], {}),
        (["--fd=3", "--socket-path=/a"], {}),
        (["--fd=3"], {"a": Path("/a")}),
        ([], {"a": Path("/a"), "b": Path("/b"), "control": Path("/c")}),
        ([], {"a": Path("/a"), FRONT_END: Path("/a")}),
    ],
)
def test_two_front_ends(arguments: list[str], handed: Handed) -> None:
    with pytest.raises(OperatorError, match=ONE_EACH):
        parse(arguments, handed)


def test_another_path_than_that_of_the_socket_that_is_handed_over() -> None:
    text = mistake(["--socket-path=/b"], {"a": Path("/a")})
    assert text == "--socket-path=/b, but /a was handed over: leave out the option"
    text = mistake(["--control-socket=/b"], {"a": Path("/a"), "control": Path("/c")})
    assert text == "--control-socket=/b, but /c was handed over: leave out the option"


@pytest.mark.parametrize("handed", [{}, {"control": Path("/c"), "metrics": None}])
def test_no_front_end(handed: Handed) -> None:
    text = mistake(["--control-socket=/c", "--name=web1"], handed)
    assert text.startswith("no front end: give --socket-path=PATH or --fd=N")
    config = parse(["--check-config"], handed)  # serves nothing
    assert (config.name, config.socket_path, config.fd) == ("", None, None)


@pytest.mark.parametrize("control", ["/run/a", "/run/../run/a", "/run/./a"])
def test_one_path_for_front_end_and_control(control: str) -> None:
    handed: Handed = {FRONT_END: Path("/run/a")}
    for text in (
        mistake(["--socket-path=/run/a", f"--control-socket={control}"]),
        mistake([f"--control-socket={control}"], handed),
    ):
        assert "--control-socket another path" in text


# Two sockets that were handed over

SAME_NAME: Handed = {"web.socket": Path("/run/a"), "/run/b": Path("/run/b")}
OTHER_NAMES: Handed = {"one": Path("/run/a"), "two": Path("/run/b")}


@pytest.mark.parametrize("handed", [SAME_NAME, OTHER_NAMES], ids=["one name", "two names"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        ["--control-socket=/run/b"],
        ["--control-socket=/run/../run/b"],
        ["--socket-path=/run/a"],
        ["--socket-path=/run/./a"],
        ["--socket-path=/run/a", "--control-socket=/run/b"],
    ],
)
def test_an_option_tells_which_is_the_control_socket(
    handed: Handed, turned: bool, options: list[str]
) -> None:
    if turned:
        handed = dict(reversed(handed.items()))
    config = parse(options, handed)
    assert (config.socket_path, config.control_socket) == (Path("/run/a"), Path("/run/b"))
    assert config.name == ("one" if handed.keys() == OTHER_NAMES.keys() else "a")


@pytest.mark.parametrize("control", ["/run/a", "/run/b"])
def test_a_name_that_two_sockets_have_is_the_vms(control: str) -> None:
    handed: Handed = {"web1": Path("/run/a"), "/run/b": Path("/run/b")}
    assert parse([f"--control-socket={control}"], handed).name == "web1"


@pytest.mark.parametrize(
    "options", [["--socket-path=/run/b"], ["--fd=3"]], ids=["a path", "a descriptor"]
)
@pytest.mark.parametrize("name", ["web.socket", "one", "unknown", FRONT_END])
def test_only_the_control_socket_is_handed_over(options: list[str], name: str) -> None:
    config = parse([*options, "--control-socket=/run/a"], {name: Path("/run/a")})
    assert config.control_socket == Path("/run/a")
    assert config.socket_path == (None if config.fd else Path("/run/b"))


@pytest.mark.parametrize("handed", [SAME_NAME, OTHER_NAMES], ids=["one name", "two names"])
@pytest.mark.parametrize(
    "options", [[], ["--name=web1"], ["--socket-path=/run/c"], ["--control-socket=/run/c"]]
)
def test_two_sockets_that_cannot_be_told_apart(handed: Handed, options: list[str]) -> None:
    text = mistake(options, handed)
    assert text.startswith("several front-end sockets were handed over, /run/a, /run/b: this")
    assert text.endswith(
        "--control-socket=/run/c is none of them"
        if "--control-socket=/run/c" in options
        else "if one is the control socket, say so with --control-socket=PATH"
    )
    text = mistake(options, handed | {"control": Path("/run/c")})
    assert text.startswith("several front-end sockets were handed over, /run/a, /run/b")


# The name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/run/web1.sock", "web1"),
        ("/run/web1.socket", "web1"),
        ("/run/web1", "web1"),
        ("/run/web.example.com.sock", "web.example.com"),
        ("/run/web.example.com", "web.example.com"),
        ("/run/web.example.org", "web.example.org"),
        ("/run/web.example.com.socket", "web.example.com"),
        ("/run/db 1.sock", "db 1"),
        ("web1.sock", "web1"),
        ("/run/sock", "sock"),
        ("/run/web1.", "web1."),
        ("/run/web1..sock", "web1."),
        ("/run/web1.sock.sock", "web1.sock"),
        ("/run/web1.socket.sock", "web1.socket"),
        ("/run/web1.SOCK", "web1.SOCK"),
        ("/run/web1.sock/", "web1"),
        ("/run/@web1", "@web1"),
        ("/run/-web1.sock", "-web1"),
        ("/run/vm1/balloon.sock", "balloon"),
        ("/run/web\\x2d1.sock", "web\\x2d1"),
        ("/run/\udcff.sock", "\\udcff"),
        ("/run/\\udcff.sock", "\\x5cudcff"),
    ],
)
def test_the_name_is_that_of_the_sockets_file(path: str, name: str) -> None:
    assert parse([f"--socket-path={path}"]).name == name
    for word in ("", "unknown", FRONT_END, "web1.socket", "balloon@web.example.com.socket"):
        assert parse([], {word: Path(path)}).name == name
        assert parse([f"--socket-path={path}"], {word: Path(path).absolute()}).name == name
    assert parse([], {"said": Path(path)}).name == "said"
    assert parse(["--name=given"], {"said": Path(path)}).name == "given"


@pytest.mark.parametrize(
    "path",
    ["", ".", "/", "..", "/run/..", "/run/.sock", "/run/.web1.sock", "/run/..sock",
     "/run/.socket", "/run/...", "/run/" + "x" * 256],
)  # fmt: skip
def test_a_file_whose_name_cannot_be_a_vms(path: str) -> None:
    text = mistake([f"--socket-path={path}"])
    assert text.startswith("the VM's name ")
    assert text.endswith(": choose one with --name=NAME")
    assert parse([f"--socket-path={path}", "--name=web1"]).name == "web1"


def test_a_name_that_is_handed_over_and_cannot_be_a_vms() -> None:
    text = mistake([], {"a/b": Path("/run/web1.sock")})
    assert text.startswith("the VM's name 'a/b' begins with a dot or contains a slash: choose one")
    assert parse(["--name=web1"], {"a/b": Path("/run/web1.sock")}).name == "web1"


@pytest.mark.parametrize("name", ["", ".", ".hidden", "a/b", "x" * 256])
def test_names_that_no_vm_can_have(name: str) -> None:
    assert "--name" in mistake([f"--name={name}", "--socket-path=/run/web1.sock"])
    with pytest.raises(ValueError, match=r"^(is empty|'.*' begins with|is too long)"):
        read_name(name)


def test_names_that_look_like_units_escapes() -> None:
    for name in ("web\\x2d1", "\\x5cweb", "a\\x40b", "a\\xff"):
        assert looks_escaped(read_name(name))
    for name in ("web-1", "a\\nb", "a\\udcffb", "a\udcffb", "a\\X2D", "a\\x4", "a\\"):
        assert not looks_escaped(read_name(name))


@pytest.mark.parametrize("name", ["control", "metrics"])
def test_the_names_of_other_sockets_are_vms_names_too(name: str) -> None:
    """Instances of the units may have these names."""
    handed: Handed = {"front-end": Path(f"/run/{name}.sock"), "control": Path("/run/c")}
    assert parse([f"--name={name}"], handed).name == parse([], handed).name == name
    assert parse([f"--socket-path=/run/{name}.sock"]).name == name


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_invalid_names(value: str) -> None:
    with pytest.raises(ValueError, match=r"^cannot be"):
        read_name(value)


@given(st.binary(min_size=1, max_size=MAX_NAME).filter(lambda name: not set(name) & set(b"\0/")))
def test_any_file_name_is_a_name_or_a_mistake(data: bytes) -> None:
    file = os.fsdecode(data)
    name = name_from_file(Path("/run") / file)
    try:
        found = parse([f"--socket-path=/run/{file}"]).name
    except OperatorError:
        assert not name or name.startswith(".")
    else:
        assert found == read_name(name) == json.loads(json.dumps(found))
        assert os.fsencode(system_name(found)) == os.fsencode(name)


# The options of settings

VALUES = {
    "memory": "4G",
    "target": "2G",
    "discard": "never",
    "stats-interval": "3",
    "report-rate": "512M/s",
    "socket-mode": "0660",
    "socket-group": "kvm",
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_an_option_changes_its_setting_and_no_other(setting: Setting) -> None:
    value = f"={VALUES[setting.key]}" if setting.kind.metavar else ""
    arguments = ["--fd=3", f"{setting.option}{value}"]
    if setting.section == FILES_ONLY:
        assert "unrecognized arguments" in mistake(arguments)
    else:
        assert changed_settings(VmSettings(), parse(arguments).settings) == [setting.key]


@pytest.mark.parametrize(
    "argument",
    ["--discard=x", "--stats-interval=x", "--stats-interval=-1", "--stats-interval=nan",
     "--report-rate=0", "--socket-mode=1777", "--control-mode=x"],
)  # fmt: skip
def test_a_value_that_an_option_cannot_have(argument: str) -> None:
    option, value = argument.split("=")
    assert mistake([argument]).startswith(f"argument {option}: '{value}' is not ")


# Removed options, and the rest


def test_a_removed_option() -> None:
    text = mistake(["--socket-path=/run/a", "--allow-unsealed-memory"])
    assert text.startswith("--allow-unsealed-memory is no longer needed: leave it out")
