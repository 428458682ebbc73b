"""The vhost-balloon-hub command: options, service manager, shutdown, and many VMs in real time."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

import vhost_balloon
from tests.support.command import daemon
from tests.support.fakes.host_vms import daemons, good, saying
from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import raise_descriptor_limit
from vhost_balloon.hub.options import ADDRESS, FOLDER, parse
from vhost_balloon.metrics.exposition import MIN_INTERVAL

COMMAND: Final = (sys.executable, "-m", "vhost_balloon.hub")


@contextmanager
def hub(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A hub and its URL; its default is --metrics-address=:0."""
    command = [*COMMAND, "--metrics-address=:0", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while not (match := re.search(r"metrics on (\S+)", process.stderr.readline())):
                assert process.poll() is None
            yield process, match[1]
        finally:
            process.kill()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


def up(text: str) -> dict[str, float]:
    found = re.findall(r'^vhost_balloon_up\{vm="(.*)"\} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in found}


# Options


def test_defaults() -> None:
    options = parse([])
    assert options.folders == (FOLDER,)
    assert (options.metrics.host, options.metrics.port) == ADDRESS


def test_folders_are_absolute_and_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse(["--folder=a", "--folder=b", f"--folder={tmp_path}/a"])
    assert options.folders == (tmp_path / "a", tmp_path / "b")


def test_a_folder_by_another_path_is_left_out(tmp_path: Path) -> None:
    """Each of its VMs would have the name of a VM that is there already."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "later").symlink_to("b")  # which does not exist yet
    names = ("link", "a", "a/../a", "b", "later")
    options = parse([f"--folder={tmp_path}/{name}" for name in names])
    assert options.folders == (tmp_path / "link", tmp_path / "b", tmp_path / "later")


def test_a_socket_for_metrics_replaces_the_address() -> None:
    assert parse([], is_handed_over=True).metrics.host == "metrics"
    with pytest.raises(OperatorError, match="a socket for metrics was handed over"):
        parse(["--metrics-address=:0"], is_handed_over=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--folder="],
        [f"--folder={__file__}"],
        ["--folder=/dev/null"],
        ["--metrics-address=nowhere"],
        ["--metrics-key=x"],
        ["--log-level=loud"],
        ["--fold=/tmp"],
        ["web1"],
    ],
)
def test_a_mistake_is_one_line(arguments: list[str]) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"vhost-balloon-hub: [^\n]+\n", done.stderr), done.stderr


def test_version() -> None:
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=20)
    assert done.stdout == f"vhost-balloon-hub {vhost_balloon.__version__}\n"
    assert done.returncode == 0


# Serving


def test_real_daemons_beside_one_that_hangs(tmp_path: Path) -> None:
    def options(name: str) -> tuple[str, str]:
        return (
            f"--socket-path={tmp_path}/{name}.sock",
            f"--control-socket={tmp_path}/{name}.control",
        )

    control = tmp_path / "web2.control"
    with (
        daemon(*options("web1"), "--stats-interval=7"),
        daemon(*options("web2"), wait_for=control) as hanging,
        hub(f"--folder={tmp_path}") as (process, url),
    ):
        text = get(url)
        assert up(text) == {"web1": 1, "web2": 1}
        assert 'vhost_balloon_stats_interval_seconds{vm="web1"} 7' in text
        assert 'vhost_balloon_internal_errors_total{vm="web1",where="log"} 0' in text
        assert 'vhost_balloon_hub_internal_errors_total{where="vm"} 0' in text
        assert "vhost_balloon_build_info{version=" in text
        assert "process_open_fds" in text
        hanging.process.send_signal(signal.SIGSTOP)
        time.sleep(2 * MIN_INTERVAL)
        text = get(url)
        assert up(text) == {"web1": 1, "web2": 0}
        assert 'vhost_balloon_connected{vm="web1"} 0' in text
        assert 'vhost_balloon_connected{vm="web2"}' not in text
        hanging.process.send_signal(signal.SIGCONT)
        time.sleep(2 * MIN_INTERVAL)
        assert up(get(url)) == {"web1": 1, "web2": 1}
        process.terminate()
        assert process.wait(3) == 0


def test_silent_vms_and_scrapers_do_not_delay_the_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent, hub(f"--folder={tmp_path}") as (process, url):
        silent.bind(str(tmp_path / "web1.control"))
        silent.listen(5)
        host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
        clients = [socket.create_connection((host, int(port))) for _ in range(10)]
        for client in clients[1:]:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        silent.settimeout(10)
        accepted, _ = silent.accept()
        process.terminate()
        assert process.wait(3) == 0
        for sock in (accepted, *clients):
            sock.close()


@pytest.mark.parametrize("names", ["metrics", "vhost-balloon-hub.socket", ""])
def test_with_a_service_manager(tmp_path: Path, names: str) -> None:
    """The socket needs no name, as the hub has no other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.settimeout(20)
            program = (
                "import os, sys\n"
                f"os.dup2({listener.fileno()}, 3)\n"
                "os.environ['LISTEN_PID'] = str(os.getpid())\n"
                f"os.execv(sys.executable, {[*COMMAND, f'--folder={tmp_path}']!r})"
            )
            environment = {
                "LISTEN_FDS": "1", "LISTEN_FDNAMES": names, "WATCHDOG_USEC": "200000",
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
            }  # fmt: skip
            with subprocess.Popen(
                [sys.executable, "-c", program],
                env=os.environ | environment,
                pass_fds=[listener.fileno()],
            ) as process:
                try:
                    told = [manager.recv(4096).decode() for _ in range(6)]
                    assert any("READY=1" in text for text in told)
                    assert sum("WATCHDOG=1" in text for text in told) >= 4
                    assert up(get(url)) == {}
                    process.terminate()
                    while "STOPPING=1" not in manager.recv(4096).decode():
                        pass
                    assert process.wait(3) == 0
                finally:
                    process.kill()


def test_two_sockets_are_a_mistake() -> None:
    program = (
        "import os, sys\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        f"os.execv(sys.executable, {COMMAND!r})"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"import os\nos.dup2({one.fileno()}, 3)\n"
             f"os.dup2({other.fileno()}, 4)\n{program}"],
            env=os.environ | {"LISTEN_FDS": "2"},
            pass_fds=[one.fileno(), other.fileno()],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "vhost-balloon-hub: 2 sockets were handed over, but the hub takes one: leave one "
        "ListenStream= in its unit\n"
    )


async def test_500_vms_of_which_50_hang(tmp_path: Path) -> None:
    """Takes the limit of one VM plus the work, the daemons' in this process included. On a busy
    machine some of these answer late, which a later scrape makes good."""
    raise_descriptor_limit()  # listeners and connections need more than a thousand
    vms = {f"web{n}": saying() if n % 10 == 0 else good(n) for n in range(500)}
    hang = {name for name in vms if int(name[3:]) % 10 == 0}
    complete = 0
    with hub(f"--folder={tmp_path}") as (_, url), trio.fail_after(60):
        async with daemons(tmp_path, vms):
            while complete < 2:
                await trio.sleep(2 * MIN_INTERVAL)
                text = await trio.to_thread.run_sync(get, url)
                found = up(text)
                assert len(found) == 500
                down = {name for name in found if not found[name]}
                assert hang <= down
                if down == hang:
                    complete += 1
                    assert f'vhost_balloon_freed_bytes_total{{vm="web499"}} {499 << 20}' in text
