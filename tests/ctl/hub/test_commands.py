"""vhost-balloonctl's commands for the policy, against a fake hub."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.ctl_command import Done, failure, run
from tests.support.fakes.daemons import (
    GREETING,
    OK,
    Serve,
    flood,
    listening,
    nobody_listens,
    replies,
    returned,
)
from tests.support.fakes.hub import document, hub
from vhost_balloon.ctl.hub import commands
from vhost_balloon.policy.settings import Mode

SILENCE = b""
NOT_FOUND = b'{"error": {"class": "DeviceNotFound", "desc": "Device not found"}}\r\n'
REFUSAL = b'{"error": {"class": "GenericError", "desc": "not\\u001b today"}}\r\n'


def asked(capsys: pytest.CaptureFixture[str], folder: Path, serve: Serve, *words: str) -> Done:
    with listening(folder / "hub", serve):
        return run(capsys, f"--hub-socket={folder}/hub", *words)


def failed(capsys: pytest.CaptureFixture[str], folder: Path, serve: Serve, *words: str) -> str:
    with listening(folder / "hub", serve):
        return failure(capsys, f"--hub-socket={folder}/hub", *words)


class Orders:
    """A hub that records what it is ordered."""

    def __init__(self, *unknown: str, **answers: bytes) -> None:
        """unknown: names of no VM. answers: by command; others succeed."""
        self._unknown = unknown
        self.orders: list[tuple[str, Mapping[str, Any]]] = []
        self._answers = {name.replace("_", "-"): value for name, value in answers.items()}

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(GREETING)
        with connection.makefile("rb") as requests:
            for line in requests:
                request = json.loads(line)
                name, arguments = request["execute"], request.get("arguments", {})
                if name not in ("qmp_capabilities", "query-policy"):
                    self.orders.append((name, arguments))
                is_known = arguments.get("id") not in self._unknown
                connection.sendall(self._answers.get(name, OK) if is_known else NOT_FOUND)


def test_policy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = asked(capsys, tmp_path, hub(), "policy")
    assert (done.status, done.err) == (0, "")
    head, _, *rows = done.out.splitlines()
    assert head.startswith("policy on: short, 1.1 GiB of 16 GiB available")
    assert [row.split()[0] for row in rows] == ["db1", "old", "web1"]
    assert asked(capsys, tmp_path, hub(), "policy", "--json").json() == document()


def test_policy_that_is_off(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    off = hub(document(Mode.OFF))
    done = asked(capsys, tmp_path, off, "policy")
    assert (done.status, done.err, done.out.count("\n")) == (0, "", 1)
    assert "`vhost-balloonctl policy-mode dry-run` shows what it would do" in done.out
    assert f"{failed(capsys, tmp_path, off, 'policy', '--explain=web1')}\n" == done.out


def test_explain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = asked(capsys, tmp_path, hub(), "policy", "--explain=db1")
    assert "\ndb1 is left alone: an operator set its target or put it on hold. " in done.out
    found = asked(capsys, tmp_path, hub(), "policy", "--explain", "web1", "--json").json()
    assert found == document()["vms"][2]
    error = failed(capsys, tmp_path, hub(), "policy", "--explain=x\x1b")
    assert error == "the policy knows no VM 'x\\x1b' (it knows: db1, old, web1)"
    second = hub(document(host=None, vms={}, problems=["process 5 decides on this host"]))
    error = failed(capsys, tmp_path, second, "policy", "--explain=web1")
    assert error == "the policy knows no VM 'web1': process 5 decides on this host"


def test_policy_watch_without_a_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("policy", "--watch", "--count=2", "--interval=0.01")
    done = asked(capsys, tmp_path, hub(), *words)
    assert (done.status, done.err) == (0, "")
    blocks = done.out.split("\n\n")
    assert [block.splitlines()[1].split(":")[0] for block in blocks] == ["policy on"] * 2
    done = asked(capsys, tmp_path, hub(), *words, "--json")
    assert [json.loads(line) for line in done.out.splitlines()] == [document()] * 2


@pytest.mark.parametrize(
    "words",
    [["policy"], ["policy", "--json"], ["policy", "--explain=db1"], ["policy", "--explain=web1"],
     ["policy", "--watch", "--count=1"]],
)  # fmt: skip
@pytest.mark.parametrize("odd", [{"detail": "old daemon " * 180}, {"held-for": (1 << 63) - 1}])
def test_no_vm_can_hide_the_policy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], odd: dict[str, Any]
) -> None:
    answer = document()
    answer["vms"][2] |= odd
    done = asked(capsys, tmp_path, hub(answer), *words)
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize(
    ("words", "order", "line", "answer"),
    [
        (["policy-hold", "web1"], ("policy-hold", {"id": "web1"}),
         "web1: the policy leaves it alone until policy-release\n", {"id": "web1", "held": True}),
        (["policy-hold", "web 1", "--for=60"], ("policy-hold", {"id": "web 1", "seconds": 60}),
         "web 1: the policy leaves it alone for 60 s\n",
         {"id": "web 1", "held": True, "held-for": 60}),
        (["policy-release", "web1"], ("policy-release", {"id": "web1"}),
         "web1: the policy may move it again\n", {"id": "web1", "held": False}),
    ],
)  # fmt: skip
def test_holds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str],
    order: tuple[str, dict[str, Any]], line: str, answer: dict[str, Any],
) -> None:  # fmt: skip
    serve = Orders()
    assert asked(capsys, tmp_path, serve, *words) == (0, line, "")
    assert asked(capsys, tmp_path, serve, *words, "--json").json() == answer
    assert serve.orders == [order] * 2
    assert failed(capsys, tmp_path, Orders(**{order[0]: REFUSAL}), *words) == "not\\x1b today"


def test_a_name_may_be_given_with_escapes_or_as_bytes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    serve = Orders()
    for word in ("raw\udcff", "raw\\udcff"):
        done = asked(capsys, tmp_path, serve, "policy-hold", word)
        assert done == (0, "raw\\udcff: the policy leaves it alone until policy-release\n", "")
    assert serve.orders == [("policy-hold", {"id": "raw\\udcff"})] * 2


BYTES = "raw\\x5cudcff"
"""The name of a file with a backslash, whose text may also mean one with the byte 255."""


@pytest.mark.parametrize("command", ["policy-hold", "policy-release"])
def test_another_spelling_is_tried_only_if_no_vm_has_the_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    first, second = (command, {"id": "raw\\udcff"}), (command, {"id": BYTES})
    serve = Orders("raw\\udcff")
    done = asked(capsys, tmp_path, serve, command, "raw\\udcff")
    assert (done.status, done.out.split(":")[0]) == (0, BYTES)
    assert serve.orders == [first, second]
    serve = Orders("raw\\udcff", BYTES)
    assert failed(capsys, tmp_path, serve, command, "raw\\udcff") == "Device not found"
    assert serve.orders == [first, second]
    serve = Orders(**{command: REFUSAL})
    assert failed(capsys, tmp_path, serve, command, "raw\\udcff") == "not\\x1b today"
    assert serve.orders == [first]


BELOW = (
    "still below their ceilings: db1\n"
    "they get memory back while the host has more than its reserve\n"
)


def test_release_of_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("policy-release", "--all")
    left = Orders(policy_release=returned({"left": ["db1", "a\x1b"]}))
    done = asked(capsys, tmp_path, left, *words)
    assert done == (
        0,
        "all holds are ended\nstill below their ceilings: db1, a\\x1b\n"
        "they get memory back while the host has more than its reserve\n",
        "",
    )
    assert left.orders == [("policy-release", {})]
    assert asked(capsys, tmp_path, left, *words, "--json").json() == {"left": ["db1", "a\x1b"]}
    done = asked(capsys, tmp_path, Orders(policy_release=returned({"left": []})), *words)
    assert done.out == "all holds are ended\nall VMs have their ceilings as targets\n"
    for answer in ({"left": [5]}, {"left": [], "failed": ["web1"]}):
        odd = Orders(policy_release=returned(answer))
        assert failed(capsys, tmp_path, odd, *words).startswith("unexpected answer")


@pytest.mark.parametrize(("left", "more"), [([], ""), (["db1"], BELOW)])
def test_release_of_all_tells_which_holds_may_last(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, left: list[str], more: str
) -> None:
    answer = {"left": left, "failed": {"web1": "its daemon gives no answer", "a\x1b": 5}}
    serve = Orders(policy_release=returned(answer))
    error = "vhost-balloonctl: holds that may last: web1, a\\x1b\n"
    assert asked(capsys, tmp_path, serve, "policy-release", "--all") == (
        1,
        "web1: its daemon gives no answer: its hold may last\n"
        f"a\\x1b: unknown: its hold may last\nall other holds are ended\n{more}",
        error,
    )
    done = asked(capsys, tmp_path, serve, "policy-release", "--all", "--json")
    assert (done.status, done.err) == (1, error)
    told = {"web1": "its daemon gives no answer", "a\x1b": "unknown"}
    assert json.loads(done.out) == {"left": left, "failed": told}


def test_mode(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    serve = Orders(query_policy=returned(document(Mode.OFF)))
    done = asked(capsys, tmp_path, serve, "policy-mode", "dry-run")
    warning = (
        "vhost-balloonctl: this lasts until the hub restarts: its configuration says off "
        "([policy], mode)\n"
    )
    assert done == (0, "policy: off -> dry-run\n", warning)
    assert serve.orders == [("policy-mode", {"mode": "dry-run"})]
    assert asked(capsys, tmp_path, serve, "policy-mode", "off") == (0, "policy: off -> off\n", "")
    found = asked(capsys, tmp_path, serve, "policy-mode", "off", "--json").json()
    assert found == {"before": "off", "mode": "off", "configured-mode": "off"}


@pytest.mark.parametrize("policy", [REFUSAL, returned([]), returned({"mode": 5}), OK, SILENCE])
def test_the_mode_changes_also_if_the_one_before_cannot_be_read(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: bytes,
) -> None:
    if policy == SILENCE:
        monkeypatch.setattr(commands, "BEFORE_SECONDS", 0.05)
    serve = Orders(query_policy=policy)
    assert asked(capsys, tmp_path, serve, "policy-mode", "off") == (0, "policy: off\n", "")
    assert asked(capsys, tmp_path, serve, "policy-mode", "off", "--json").json() == {"mode": "off"}
    assert serve.orders == [("policy-mode", {"mode": "off"})] * 2


def test_reload_of_the_hub(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    changed = Orders(config_reload=returned({"changed": ["policy.mode", "vm.a\x1b.floor"]}))
    done = asked(capsys, tmp_path, changed, "reload", "--hub")
    assert done == (0, "hub: changed policy.mode, vm.a\\x1b.floor\n", "")
    same = Orders(config_reload=returned({"changed": []}))
    assert asked(capsys, tmp_path, same, "reload", "--hub").out == "hub: nothing changed\n"
    assert asked(capsys, tmp_path, same, "reload", "--hub", "--json").json() == {"changed": []}
    assert changed.orders == [("config-reload", {})]
    mistake = Orders(config_reload=REFUSAL)
    assert failed(capsys, tmp_path, mistake, "reload", "--hub") == "not\\x1b today"


COMMANDS = (
    ("policy",), ("policy", "--explain=web1"), ("policy", "--watch"), ("policy-hold", "web1"),
    ("policy-release", "web1"), ("policy-release", "--all"), ("policy-mode", "on"),
    ("reload", "--hub"),
)  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_a_hub_that_is_absent_or_odd_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    path = tmp_path / "hub"
    absent = (
        f"no hub listens at {path}: `systemctl start vhost-balloon-hub` starts it, and the policy "
        "with it"
    )
    assert failure(capsys, f"--hub-socket={path}", *words) == absent
    nobody_listens(path)
    assert failure(capsys, *words, f"--hub-socket={path}") == absent
    path.unlink()
    for serve, text in (
        (replies(b""), f"{path}: the daemon closed the connection"),
        (replies(b"HTTP/1.1\r\n"), f"{path}: does not speak QMP: not a control socket"),
        (flood(GREETING + OK, b'{"event": "X"}' + b" " * 60_000 + b"\n"),
         f"{path}: it sent 16 MiB without answering"),
    ):  # fmt: skip
        assert failed(capsys, tmp_path, serve, *words) == text


def test_the_policy_of_many_vms_fits_into_an_answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer = document()
    answer["vms"] = [answer["vms"][2] | {"id": f"vm{number}"} for number in range(4096)]
    found = asked(capsys, tmp_path, hub(answer), "policy", "--json").json()
    assert len(found["vms"]) == 4096


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["policy", "--explain=a", "--watch"], "--watch and --explain exclude each other"),
        (["policy", "--count=2"], "--interval and --count require --watch"),
        (["policy", "--interval=2"], "--interval and --count require --watch"),
        (["policy-hold"], "the following arguments are required: VM"),
        (
            ["policy-hold", "a", "--for=0"],
            "'0' is not a whole number of seconds from 1 to 31536000",
        ),
        (["policy-hold", "a", "--for=1.5"], "'1.5' is not a whole number of seconds"),
        (["policy-release"], "policy-release takes either the name of a VM or --all"),
        (["policy-release", "a", "--all"], "policy-release takes either the name of a VM or --all"),
        (["policy-mode", "maybe"], "invalid choice: 'maybe'"),
        (["reload", "--hub", "--all"], "reload takes either names of VMs or --all or --hub"),
        (["reload", "--hub", "a"], "reload takes either names of VMs or --all or --hub"),
    ],
)
def test_a_usage_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert text in failure(capsys, *words, status=2)
