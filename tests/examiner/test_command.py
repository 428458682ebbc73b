"""The vhost-balloon-examiner command: options, a socket that is handed over, its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vhost_balloon
from protocol.examiner import question, read_answer
from tests.rig.waiting import wait_until
from tests.support.fakes.daemons import nobody_listens
from tests.support.huge_pages import need_root
from vhost_balloon.errors import OperatorError
from vhost_balloon.examiner.__main__ import NO_RIGHTS
from vhost_balloon.examiner.options import parse
from vhost_balloon.memory.pins import has_rights

COMMAND = (sys.executable, "-m", "vhost_balloon.examiner")
HANDED_OVER = """
import os, runpy, sys
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="examiner")
os.dup2(int(sys.argv.pop()), 3)
runpy.run_module("vhost_balloon.examiner", run_name="__main__")
"""


@contextmanager
def running(
    command: list[str], path: Path, fd: int | None = None, *, may_look: bool | None = None
) -> Iterator[None]:
    """An examiner that answers at path and logs its end, and first whether it may look.

    may_look: as this process by default.
    """
    may_look = has_rights() if may_look is None else may_look
    expected = "" if may_look else f"warning: {NO_RIGHTS}\n"
    fds = [] if fd is None else [fd]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pass_fds=fds) as process:
        try:
            wait_until(path.is_socket, 20)
            yield
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            log = process.stderr.read()
            assert (process.wait(10), log) == (0, f"{expected}info: ending on SIGTERM\n")
        finally:
            process.kill()


def asked(path: Path) -> str:
    """What it says about this process."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        wait_until(lambda: sock.connect_ex(str(path)) == 0, 20)
        sock.sendall(question(os.getpid(), 1 << 40))
        return read_answer(sock.recv(300))[0]


def test_it_listens_on_a_path_and_removes_it(short_folder: Path) -> None:
    path = short_folder / "socket"
    nobody_listens(path)  # a stale one is replaced
    with running([*COMMAND, f"--socket-path={path}"], path):
        assert asked(path) == "free"
        assert path.stat().st_mode & 0o777 == 0o666, "the folder decides who may ask"
        used = subprocess.run([*COMMAND, f"--socket-path={path}"], capture_output=True, text=True)
        assert (used.returncode, used.stderr.count("\n")) == (2, 1)
    assert not path.exists()


@pytest.mark.parametrize("left", ["sys_ptrace", "dac_read_search"])
def test_it_warns_without_the_rights_to_look(short_folder: Path, left: str) -> None:
    need_root("A PROCESS THAT MAY LOOK")
    path = short_folder / "socket"
    without = ("setpriv", f"--bounding-set=-all,+{left}", "--inh-caps=-all")
    with running([*without, *COMMAND, f"--socket-path={path}"], path, may_look=False):
        assert asked(path) in ("free", "unknown")


def test_a_socket_that_is_handed_over(short_folder: Path) -> None:
    path = short_folder / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [sys.executable, "-c", HANDED_OVER, str(listener.fileno())]
        with running(command, path, listener.fileno()):
            assert asked(path) == "free"
    assert path.exists(), "it is the service manager's"


@pytest.mark.parametrize(
    "arguments",
    [[], ["--socket-path="], ["--socket-path=/no/such/folder/x"], ["--socket-path=/dev/null"],
     ["--socket-path=/tmp/x", "--log-level=loud"], ["--socket=/tmp/x"],
     ["--socket-path=/tmp/x", "y"], ["--socket-path=/tmp/" + "x" * 200]],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments: list[str]) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"vhost-balloon-examiner: [^\n]+\n", done.stderr), done.stderr


def test_version() -> None:
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=20)
    said = f"vhost-balloon-examiner {vhost_balloon.__version__}\n"
    assert (done.returncode, done.stdout) == (0, said)


def test_which_sockets_it_takes() -> None:
    assert parse([], ["examiner"]).socket_path is None
    assert parse(["--socket-path=/x"]).socket_path == Path("/x")
    with pytest.raises(OperatorError, match="so --socket-path is not possible"):
        parse(["--socket-path=/x"], ["examiner"])
    with pytest.raises(OperatorError, match="2 sockets were handed over instead of one"):
        parse([], ["a", "b"])
    with pytest.raises(OperatorError, match="'metrics' was handed over"):
        parse([], ["metrics"])
