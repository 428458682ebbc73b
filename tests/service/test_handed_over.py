"""Listening sockets from the service manager: by name, by path, and wrong ones."""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.rig.qmp import QMPClient
from tests.support.command import listening
from tests.support.helpers import receive
from tests.support.restarting.handing_over import handed, handed_pairs
from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.service.handed_over import take_sockets


def vms(control: Path) -> dict[str, dict[str, object]]:
    with QMPClient(control) as qmp:
        return {vm["id"]: vm for vm in qmp.execute("query-vms")}


def refused(*options: str, **sockets: socket.socket) -> str:
    """The one line that a daemon prints when it does not start."""
    return refused_pairs([*sockets.items()], *options)


def refused_pairs(sockets: Sequence[tuple[str, socket.socket]], *options: str) -> str:
    with handed_pairs(sockets, *options) as started:
        _, log = started.process.communicate(timeout=20)
        assert (started.process.returncode, log.count("\n")) == (2, 1), log
        return log


def test_front_end_control_and_metrics_all_by_name(tmp_path: Path) -> None:
    metrics = socket.create_server(("127.0.0.1", 0))
    port = metrics.getsockname()[1]
    sockets = {name: listening(tmp_path / f"{name}.sock") for name in ("a", "c")}
    with handed(web1=sockets["a"], control=sockets["c"], metrics=metrics) as it:
        assert it.told() == "READY=1\nSTATUS=no front end is attached"
        found = vms(tmp_path / "c.sock")
        assert {name: vm["socket-path"] for name, vm in found.items()} == {
            "web1": str(tmp_path / "a.sock"),
        }
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b'vhost_balloon_connected{vm="web1"} 0' in answer.read()
        assert it.end()[0] == 0
        assert it.told() == "STOPPING=1"
    assert len(list(tmp_path.iterdir())) == 2, "their files belong to the service manager"


def test_a_front_end_may_connect_before_the_daemon_is_there(tmp_path: Path) -> None:
    sock = listening(tmp_path / "vm.sock")
    control = f"--control-socket={tmp_path}/control"
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(sock.getsockname())
        front_end.sendall(bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))  # GET_FEATURES, version 1
        with handed(control, web1=sock) as started:
            front_end.settimeout(20)
            assert receive(front_end, 4) == bytes([1, 0, 0, 0])
            started.told()
            assert vms(tmp_path / "control")["web1"]["attached"] is True


def test_the_service_manager_shows_whether_a_front_end_is_attached(tmp_path: Path) -> None:
    sock = listening(tmp_path / "vm.sock")
    path = sock.getsockname()
    with handed(web1=sock) as started:
        assert started.told().endswith("STATUS=no front end is attached")
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.connect(path)
            assert started.told() == "STATUS=a front end is attached"
        assert started.told() == "STATUS=no front end is attached"


def test_a_handed_over_socket_serves_the_socket_path_of_the_same_path(tmp_path: Path) -> None:
    path = tmp_path / "vm.sock"
    with handed(
        f"--socket-path={path}", f"--control-socket={tmp_path}/c", web1=listening(path)
    ) as started:
        started.told()
        found = {name: vm["socket-path"] for name, vm in vms(tmp_path / "c").items()}
        assert found == {"web1": str(path)}
        started.end()
    assert path.is_socket()


@pytest.mark.parametrize("name", ["unknown", "front-end"])
def test_without_a_name_the_vm_is_named_after_the_socket(tmp_path: Path, name: str) -> None:
    sockets = {name: listening(tmp_path / "x.sock")}
    with handed(f"--control-socket={tmp_path}/c", **sockets) as it:
        it.told()
        assert list(vms(tmp_path / "c")) == ["x"]


def test_the_option_for_the_name_comes_before_the_sockets_name(tmp_path: Path) -> None:
    sock = listening(tmp_path / "x.sock")
    with handed("--name=web1", f"--control-socket={tmp_path}/c", db=sock) as it:
        it.told()
        assert list(vms(tmp_path / "c")) == ["web1"]


def test_a_stored_descriptor_does_not_name_the_vm(tmp_path: Path) -> None:
    stored = {".5": listening(tmp_path / "stored.sock"), "vm": listening(tmp_path / "vm.sock")}
    with handed(f"--control-socket={tmp_path}/c", **stored) as started:
        started.told()
        assert list(vms(tmp_path / "c")) == ["vm"]


def test_wrong_kinds_are_one_line(tmp_path: Path) -> None:
    unix, tcp = "not a listening Unix stream socket", "not a listening TCP socket"
    assert unix in refused(web1=socket.socket(socket.AF_UNIX))
    assert unix in refused(web1=socket.create_server(("127.0.0.1", 0)))
    assert unix in refused(web1=socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    assert unix in refused(control=socket.create_server(("127.0.0.1", 0)))
    assert tcp in refused(metrics=listening(tmp_path / "m.sock"))
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packets.bind(str(tmp_path / "packets"))
    packets.listen()
    assert f"{unix}: use ListenStream= with a path" in refused(web1=packets)
    pair = socket.socketpair()
    assert f"{unix} but a connection: set Accept=no in its unit" in refused(connection=pair[0])
    pair[1].close()
    network = "only one with FileDescriptorName=metrics may have a network address"
    assert network in refused(web1=socket.create_server(("127.0.0.1", 0)))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0{tmp_path}")
    abstract.listen()
    assert "has no path: give ListenStream= the path of a file" in refused(web1=abstract)
    metrics = [("metrics", socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
    assert "two sockets named 'metrics'" in refused_pairs(metrics)
    controls = [("control", listening(tmp_path / f"c{number}")) for number in range(2)]
    assert "is for one socket, alone in its unit" in refused_pairs(controls)


def test_a_file_is_not_a_socket(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (os.devnull, tmp_path / "fifo"):
        fd = OwnedFd(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        with pytest.raises(OperatorError, match="'web1' handed over: Socket operation"):
            take_sockets([("web1", fd)])
        fd.close()


# Sockets of one unit, which all have the unit's name


@pytest.mark.parametrize("name", ["web1.socket", "unknown", "web1"])
@pytest.mark.parametrize("option", ["--control-socket={}/c.sock", "--socket-path={}/vm.sock"])
@pytest.mark.parametrize("order", [("vm", "c"), ("c", "vm")])
def test_two_sockets_of_one_unit(
    tmp_path: Path, name: str, option: str, order: tuple[str, ...]
) -> None:
    pairs = [(name, listening(tmp_path / f"{which}.sock")) for which in order]
    with handed_pairs(pairs, option.format(tmp_path)) as started:
        started.told()
        (vm,) = vms(tmp_path / "c.sock").values()
        assert vm["id"] == ("web1" if name == "web1" else "vm")
        assert vm["socket-path"] == f"{tmp_path}/vm.sock"
        started.process.send_signal(signal.SIGHUP)  # re-executes in place
        started.wait_logged("serving")
        started.wait_logged("serving")
        (vm,) = vms(tmp_path / "c.sock").values()
        assert vm["socket-path"] == f"{tmp_path}/vm.sock"
        assert started.end()[0] == 0


def test_two_sockets_of_one_unit_that_cannot_be_told_apart(tmp_path: Path) -> None:
    for name in ("web1.socket", "unknown", "web1"):
        paths = [tmp_path / f"{name}-{end}" for end in "ab"]
        line = refused_pairs([(name, listening(path)) for path in paths], "--name=x")
        assert line == (
            "vhost-balloon: several front-end sockets were handed over, "
            f"{paths[0]}, {paths[1]}: this daemon serves one VM: start one vhost-balloon for each "
            "(under systemd vhost-balloon@NAME.socket); if one is the control socket, say so with "
            "--control-socket=PATH\n"
        )


@pytest.mark.parametrize("name", ["web1.socket", "vhost-balloon@web2.socket", ""])
def test_a_units_name_is_not_the_vms(tmp_path: Path, name: str) -> None:
    pairs = [(name, listening(tmp_path / "web.example.com.sock"))]
    with handed_pairs(pairs, f"--control-socket={tmp_path}/c") as started:
        started.told()
        assert list(vms(tmp_path / "c")) == ["web.example.com"]


def test_sockets_that_contradict_options_are_one_line(tmp_path: Path) -> None:
    def sock(name: str) -> socket.socket:
        return listening(tmp_path / name)

    assert "no front end" in refused(metrics=socket.create_server(("127.0.0.1", 0)))
    assert "--fd and another" in refused("--fd=0", web1=sock("2"))
    assert "another path" in refused(f"--control-socket={tmp_path}/3", a=sock("3"))
    assert "was handed over: leave out the option" in refused(
        "--control-socket=/x", a=sock("4"), control=sock("5")
    )
    metrics = socket.create_server(("127.0.0.1", 0))
    assert "for metrics was handed" in refused("--metrics-address=:0", a=sock("6"), metrics=metrics)
    assert "was handed over: leave out the option" in refused("--socket-path=/x", a=sock("7"))
    assert "start one vhost-balloon for each" in refused(a=sock("8"), b=sock("9"))
