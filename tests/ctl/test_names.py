"""vhost-balloonctl with names of any bytes: each is taken as it is listed, in any locale."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.ctl_command import CTL, failure, run
from tests.support.fakes.daemons import (
    Serve,
    answering,
    fake_daemons,
    nobody_listens,
    returned,
)
from vhost_balloon.ctl import listing
from vhost_balloon.name_text import name_text

ODD = [
    *("raw\udcff", "raw\\udcff", "\x1b", "\\x1b", "\\\\x1b", "\\x5cx1b", "tab\t", "tab\\t"),
    *(
        "blank ",
        "blank",
        " ",
        "\u9b5a",
        "\\u9b5a",
        "-x",
        "--",
        "a,b",
        "$(x)",
        "*",
        "'",
        "\U0001f9c0",
    ),
]

REFUSAL = b'{"error": {"class": "GenericError", "desc": "no"}}\r\n'


def answering_as(name: str) -> Serve:
    """A daemon whose answers tell it from others."""
    return answering(freed_bytes=ODD.index(name) + 1)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_name_is_taken_as_it_is_listed(
    capsys: pytest.CaptureFixture[str], short_folder: Path, encoding: str
) -> None:
    """As text, as JSON and as the bytes of the file; and none is taken for another."""
    where = f"--folder={short_folder}"

    def freed(word: str) -> object:
        return run(capsys, where, "status", "--json", "--", word).json()["freed-bytes"]

    with fake_daemons(short_folder, {name: answering_as(name) for name in ODD}):
        vms = run(capsys, where, "list", "--json").json()
        lines = run(capsys, where, "list", "--names").out
        names = lines.encode(encoding, "backslashreplace").decode(encoding).splitlines()
        ids = run(capsys, where, "list", "--names", "--json").json()
        assert ids == [vm["id"] for vm in vms]
        for forms in (names, ids):
            assert len(set(forms)) == len(ODD)
            assert [freed(form) for form in forms] == [vm["freed-bytes"] for vm in vms]
        json.dumps(vms, ensure_ascii=False).encode()  # has no halves of surrogate pairs
    for name in ODD:
        with fake_daemons(short_folder, {name: answering_as(name)}):
            assert freed(name) == ODD.index(name) + 1


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_names_in_other_locales(short_folder: Path, locale: str) -> None:
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def ctl(*words: bytes) -> bytes:
        command: list[str | bytes] = [*CTL, f"--folder={short_folder}", *words]
        done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=20)
        assert done.stderr == b""
        return done.stdout

    names = ["\u9b5a", "\\u9b5a", "\udce9", "\xe9"]
    with fake_daemons(short_folder, {name: answering_as(ODD[n]) for n, name in enumerate(names)}):
        listed = ctl(b"list", b"--names").splitlines()
        assert len(set(listed)) == len(names)
        found = [json.loads(ctl(b"status", b"--json", name)) for name in listed]
        assert sorted(vm["freed-bytes"] for vm in found) == [1, 2, 3, 4]
        # What is listed comes first: here \\u9b5a means the other one, and \\x5cu9b5a this one.
        for number, name in ((1, "\u9b5a"), (1, "\\u9b5a"), (2, "\\x5cu9b5a"), (3, "\udce9")):
            raw = name.encode(errors="surrogateescape")
            assert json.loads(ctl(b"status", b"--json", raw))["freed-bytes"] == number


@pytest.mark.parametrize("name", ODD)
def test_the_name_that_a_daemon_gives(
    capsys: pytest.CaptureFixture[str], short_folder: Path, name: str
) -> None:
    where = f"--control-socket={short_folder}/x.control"
    with fake_daemons(short_folder, {"x": answering(id=name_text(name))}):
        (shown,) = run(capsys, where, "list", "--names").out.splitlines()
        for word in (name, name_text(name), shown):
            assert run(capsys, where, "status", "--json", "--", word).json()["id"] == name_text(
                name
            )
    with fake_daemons(short_folder, {"x": answering(id="\udcff\ud800")}):
        (vm,) = run(capsys, where, "list", "--json").json()
        assert vm["id"] == "\\udcff\\ud800"


@pytest.mark.parametrize("name", ["-x", "--", "--all", "-"])
def test_a_name_with_a_leading_dash_follows_two(
    capsys: pytest.CaptureFixture[str], short_folder: Path, name: str
) -> None:
    where = f"--folder={short_folder}"
    with fake_daemons(short_folder, {name: answering()}):
        assert run(capsys, where, "pause", "--", name).status == 0
        assert run(capsys, where, "set", "--", name, "1G").status == 0
    nobody_listens(short_folder / f"{name}.sock")
    assert f"path={short_folder}/{name}.sock" in run(capsys, where, "qemu-args", "--", name).out


@pytest.mark.parametrize("name", ODD)
def test_the_socket_of_a_vm_without_a_daemon(
    capsys: pytest.CaptureFixture[str], short_folder: Path, name: str
) -> None:
    nobody_listens(short_folder / f"{name}.sock")
    words = run(capsys, f"--folder={short_folder}", "qemu-args", "--json", "--", name).json()
    assert f"socket,id=balloon,path={short_folder}/{name}.sock".replace("a,b", "a,,b") in words


@pytest.mark.parametrize("name", ODD)
def test_every_command_names_a_vm_as_list_does(
    capsys: pytest.CaptureFixture[str], short_folder: Path, name: str
) -> None:
    where = f"--folder={short_folder}"
    changes = {"config-reload": returned({"changed": []})}
    with fake_daemons(short_folder, {name: answering(changes)}):
        (listed,) = run(capsys, where, "list", "--names").out.splitlines()
        for words in (["pause"], ["resume"], ["disconnect"], ["reload"]):
            assert run(capsys, where, *words, "--", name).out.startswith(f"{listed}: ")
            found = json.loads(run(capsys, where, *words, "--json", "--", name).out)
            (vm,) = found if isinstance(found, list) else [found]
            assert vm["id"] == name_text(name)
        assert run(capsys, where, "set", "--", name, "1G").out.startswith(f"{listed}: ")
    refusing = {"balloon": REFUSAL, "config-reload": REFUSAL}
    with fake_daemons(short_folder, {name: answering(refusing), "other": answering(refusing)}):
        assert failure(capsys, where, "reload", "--", name) == f"{listed}: no"
        assert f" not reloaded: {listed}" in run(capsys, where, "reload", "--", name, "other").err


def test_an_unknown_name_is_shown_as_given(
    capsys: pytest.CaptureFixture[str], short_folder: Path
) -> None:
    with fake_daemons(short_folder, {"raw\udcff": answering(), " ": answering()}):
        error = failure(capsys, f"--folder={short_folder}", "status", "it's\x1b\udcfe")
        assert error == "there is no VM 'it's\\x1b\\udcfe' (known VMs: \\x20, raw\\udcff)"


@pytest.mark.parametrize("names", [["a" * 60 + "1", "a" * 60 + "2"], ["b" * 25, "b" * 24]])
def test_long_names_still_differ_on_a_terminal(names: list[str]) -> None:
    known = [*names, "short"]
    assert len(set(listing.names(known, cut=True))) == 3
    assert listing.names(known[:1], cut=True) == [names[0][:23] + "~"]
    assert listing.names(known, cut=False) == known
