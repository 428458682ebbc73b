"""vhost-balloonctl upgrade and reload."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.command import daemon
from tests.support.ctl_command import failure, run
from tests.support.fakes.daemons import (
    GREETING,
    OK,
    VM,
    Serve,
    answering,
    fake_daemons,
    nobody_listens,
    replies,
    returned,
    say_nothing,
)
from vhost_balloon.ctl import upkeep

VERSION = returned({"qemu": {"major": 1, "minor": 2, "micro": 3}, "package": "vhost-balloon"})
REFUSAL = b'{"error": {"class": "GenericError", "desc": "no such program"}}\r\n'


class Upgraded:
    """Daemons that close their connection on `upgrade`, after which successors answer.

    Attributes:
        calls: the upgrades and the connections to successors, in order.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []

    def serve(self, name: str, *then: Serve) -> Serve:
        """Return one daemon. then: its successors, one for each connection, the last for all the
        others; by default one that works."""
        servers = [*then, answering({"query-version": VERSION})][: len(then) or 1]
        upgraded = threading.Event()

        def serve(connection: socket.socket) -> None:
            if upgraded.is_set():
                self.calls.append(f"{name} again")
                server = servers[0] if len(servers) == 1 else servers.pop(0)
                server(connection)
                return
            connection.sendall(GREETING)
            with connection.makefile("rb") as requests:
                for line in requests:
                    command = json.loads(line)["execute"]
                    if command == "upgrade":
                        self.calls.append(f"{name} upgrade")
                        upgraded.set()
                    connection.sendall(returned([VM]) if command == "query-vms" else OK)
                    if command == "upgrade":
                        return

        return serve


@pytest.fixture
def upgraded() -> Upgraded:
    return Upgraded()


@pytest.fixture
def short_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "BACK_SECONDS", 1.0)


def test_upgrade_takes_one_after_the_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, upgraded: Upgraded
) -> None:
    serves = {name: upgraded.serve(name) for name in ("c", "a", "b")}
    with fake_daemons(tmp_path, serves):
        done = run(capsys, f"--folder={tmp_path}", "upgrade", "--all")
    text = "".join(f"{name}: version 1.2.3, done\n" for name in "abc")
    assert done == (0, text, "")
    assert upgraded.calls == [f"{name} {what}" for name in "abc" for what in ("upgrade", "again")]


def test_upgrade_of_named_vms(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, upgraded: Upgraded
) -> None:
    serves = {name: upgraded.serve(name) for name in ("a", "b", "c")}
    with fake_daemons(tmp_path, serves):
        done = run(capsys, f"--folder={tmp_path}", "upgrade", "c", "a", "c", "--json")
        assert done.json() == [{"id": name, "version": "1.2.3"} for name in "ca"]
        assert upgraded.calls == ["c upgrade", "c again", "a upgrade", "a again"]
        upgraded.calls.clear()
        error = failure(capsys, f"--folder={tmp_path}", "upgrade", "b", "x")
        assert error == "there is no VM 'x' (known VMs: a, b, c)"
        assert upgraded.calls == []


def test_upgrade_waits_until_the_new_daemon_answers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, upgraded: Upgraded
) -> None:
    refuses = replies(GREETING, OK, REFUSAL)
    serve = upgraded.serve(
        "a", replies(b""), replies(GREETING), refuses, answering({"query-version": VERSION})
    )
    with fake_daemons(tmp_path, {"a": serve}):
        assert run(capsys, f"--folder={tmp_path}", "upgrade", "a").status == 0
    assert upgraded.calls == ["a upgrade", *["a again"] * 4]


@pytest.mark.usefixtures("short_of_time")
@pytest.mark.parametrize(
    ("then", "why"),
    [(say_nothing, "no answer within "), (replies(b""), "the daemon closed the connection"),
     (replies(b"HTTP/1.1\r\n"), "does not speak QMP"),
     (answering({"query-version": OK}), "from the daemon (query-version)"),
     (answering({"query-version": VERSION, "query-vms": OK}), "from the daemon (query-vms)")],
)  # fmt: skip
def test_upgrade_ends_at_the_first_that_does_not_answer_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, upgraded: Upgraded, then: Serve, why: str
) -> None:
    serves = {
        "a": upgraded.serve("a"), "b": upgraded.serve("b", then), "c": upgraded.serve("c"),
    }  # fmt: skip
    with fake_daemons(tmp_path, serves):
        status, out, err = run(capsys, f"--folder={tmp_path}", "upgrade", "--all", "--json")
    assert (status, json.loads(out)) == (1, [{"id": "a", "version": "1.2.3"}])
    assert err.startswith("vhost-balloonctl: b did not answer within 1 s of its upgrade (")
    assert why in err
    assert err.count("\n") == 1
    assert not any(call.startswith("c") for call in upgraded.calls)


@pytest.mark.usefixtures("short_of_time")
@pytest.mark.parametrize(
    ("serve", "error"),
    [(answering({"upgrade": REFUSAL}), "b: no such program"),
     (answering(), "b: the daemon still runs the old program"),
     (replies(GREETING, OK), "b: {path}: the daemon closed the connection")],
)  # fmt: skip
def test_upgrade_ends_at_the_first_that_is_not_upgraded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, upgraded: Upgraded, serve: Serve, error: str
) -> None:
    with fake_daemons(tmp_path, {"b": serve, "c": upgraded.serve("c")}):
        found = failure(capsys, f"--folder={tmp_path}", "upgrade", "--all")
    assert found == error.format(path=tmp_path / "b.control")
    assert upgraded.calls == []


def test_upgrade_of_real_daemons(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "BACK_SECONDS", 60.0)  # the machine may be busy
    options = {
        name: (f"--socket-path={path}.sock", f"--control-socket={path}.control")
        for name, path in (("web1", tmp_path / "web1"), ("web2", tmp_path / "web2"))
    }
    with daemon(*options["web1"]) as one, daemon(*options["web2"]) as two:
        done = run(capsys, f"--folder={tmp_path}", "upgrade", "--all")
        lines = "web1: version 0.1.0, disconnected\nweb2: version 0.1.0, disconnected\n"
        assert done == (0, lines, "")
        for running in (one, two):
            status, log = running.end()
            assert status == 0
            assert "re-executing" in log


# reload


def reloaded(*settings: str) -> Serve:
    return answering({"config-reload": returned({"changed": [*settings]})})


def reload(
    capsys: pytest.CaptureFixture[str], folder: Path, serves: Mapping[str, Serve], *words: str
) -> tuple[int, str, str]:
    with fake_daemons(folder, serves):
        return run(capsys, f"--folder={folder}", "reload", *words)


CHANGING = {"web1": reloaded("target", "stats-interval"), "web2": reloaded()}
CHANGED = "web1: changed target, stats-interval\n"
UNCHANGED = "web2: nothing changed\n"
MISTAKE = b'{"error": {"class": "GenericError", "desc": "/etc/a.toml: line 3: \\u001b[2J"}}\n'


def test_reload(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert reload(capsys, tmp_path, CHANGING, "--all") == (0, CHANGED + UNCHANGED, "")
    assert reload(capsys, tmp_path, CHANGING, "web2", "web1") == (0, UNCHANGED + CHANGED, "")
    assert reload(capsys, tmp_path, CHANGING, "web1", "web1") == (0, CHANGED, "")
    status, out, _ = reload(capsys, tmp_path, CHANGING, "--all", "--json")
    assert status == 0
    assert json.loads(out) == [
        {"id": "web1", "changed": ["target", "stats-interval"]}, {"id": "web2", "changed": []},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("serve", "error"),
    [(answering({"config-reload": MISTAKE}), "/etc/a.toml: line 3: \\x1b[2J"),
     (replies(b""), "the daemon closed the connection"),
     (answering(), "unexpected answer from the daemon (config-reload): another version?"),
     (answering({"config-reload": returned({"changed": [1]})}),
      "unexpected answer from the daemon (changed): another version?")],
)  # fmt: skip
def test_a_failed_reload_does_not_affect_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, serve: Serve, error: str
) -> None:
    serves = {"a": serve, **CHANGING}
    done = reload(capsys, tmp_path, serves, "--all")
    err = "vhost-balloonctl: 1 of 3 VMs not reloaded: a\n"
    assert done == (1, f"a: {error}\n{CHANGED}{UNCHANGED}", err)
    status, out, err_with_json = reload(capsys, tmp_path, serves, "--all", "--json")
    assert (status, err_with_json) == (1, err)
    assert [sorted(vm) for vm in json.loads(out)] == [["error", "id"], *[["changed", "id"]] * 2]
    assert reload(capsys, tmp_path, serves, "a") == (1, "", f"vhost-balloonctl: a: {error}\n")


def test_reload_asks_all_before_it_waits_for_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each daemon answers only after both were asked."""
    both = threading.Barrier(2)

    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        with connection.makefile("rb") as requests:
            for line in requests:
                if b"config-reload" in line:
                    both.wait(5)
                connection.sendall(returned({"changed": []}))

    done = reload(capsys, tmp_path, {"a": serve, "b": serve}, "--all")
    assert done == (0, "a: nothing changed\nb: nothing changed\n", "")


def test_reload_of_a_vm_whose_daemon_is_gone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nobody_listens(tmp_path / "a.control")
    done = reload(capsys, tmp_path, CHANGING, "--all")
    assert done[1].startswith("a: cannot connect: nothing listens on it\nweb1: changed")
    assert done[0] == 1
