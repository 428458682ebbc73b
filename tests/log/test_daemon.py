"""The daemon whose log is not read, and what is written about uncaught exceptions."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import termios
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rig.qmp import QMPClient
from tests.support.command import COMMAND
from tests.support.helpers import readable
from tests.support.logged_daemon import (
    SECONDS,
    full_pipe,
    pid_of,
    python,
    read_until,
    started,
    wait_for,
)
from vhost_balloon.ctl.client import Client

"""Longest wait for the daemon, on a busy machine."""


# Not read


GET_FEATURES = bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])


def come_and_go(path: Path, times: int = 1) -> None:
    """Front ends that send nothing: two log lines each."""
    for _ in range(times):
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.connect(str(path))


def test_an_unread_log_costs_lines_and_not_service(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"-" * 2047 + b"\n")
    times, name = 5, "x" * 250
    with started(tmp_path, f"--name={name}", stderr=writer) as control, QMPClient(control) as qmp:
        come_and_go(tmp_path / "vm1.sock", times)
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(tmp_path / "vm1.sock"))
            last.sendall(GET_FEATURES)
            assert last.recv(4) == GET_FEATURES[:4], "all earlier ones have gone"
            assert qmp.execute("query-vms")[0]["attached"]
        # Nothing else happens: the loss is reported as soon as the log is read.
        said, whole, lost = read_until(reader, "-\n"), 0, 0
        while whole + lost < 1 + 2 * times:
            said += read_until(reader, "\n")
            lines = said.splitlines()[1:]
            whole = sum(
                bool(re.fullmatch(r"info: (serving x+|x+: front end (attached|gone).*)", line))
                for line in lines
            )
            counts = re.findall(r"warning: (\d+) lines? w\w+ lost because nobody read", said)
            lost = sum(map(int, counts))
        assert whole > 2
        assert lost > 2
        assert len(lines) == whole + len(counts), "no line is torn"
        os.kill(pid_of(control), signal.SIGHUP)
        assert read_until(reader, "serving").count("lost") == 0
    os.close(reader)
    os.close(writer)


def test_an_upgrade_while_the_log_is_not_read(tmp_path: Path) -> None:
    reader, writer = full_pipe()
    with started(tmp_path, stderr=writer) as control:
        with Client(str(control)) as client:
            come_and_go(tmp_path / "vm1.sock")
            client.execute("upgrade", patience=SECONDS)
            client.wait_end(SECONDS)
        with Client(str(control)) as client:
            client.execute("query-vms")
        said = read_until(reader, "were lost because nobody read the log\n")
        count = int(said.rpartition("warning: ")[2].split()[0])
        assert count >= 4, "serving, re-executing, serving; a front end"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGABRT])
def test_it_ends_while_the_log_is_not_read(tmp_path: Path, number: signal.Signals) -> None:
    """SIGABRT, the watchdog's signal: its handler writes the stacks."""
    reader, writer = full_pipe()
    control = tmp_path / "control"
    command = [*COMMAND, f"--socket-path={tmp_path}/a", f"--control-socket={control}"]
    with subprocess.Popen(command, stderr=writer) as process:
        try:
            wait_for(control)
            process.send_signal(number)
            assert process.wait(SECONDS) == (0 if number == signal.SIGTERM else -number)
        finally:
            process.kill()
    os.close(reader)
    os.close(writer)


# Uncaught exceptions

BUG = """
import sys
from vhost_balloon import __main__
from vhost_balloon.daemon import daemon
async def run(*_):
    raise KeyError("name \\x1b[2J")
daemon.run = run
sys.argv[1:] = ["--socket-path=/nonexistent/a", "--log-format={style}"]
__main__.main()
"""


def test_a_bug_is_loud() -> None:
    done = python(BUG.format(style="text"), stderr=subprocess.PIPE)
    first, *others = done.stderr.splitlines()
    assert (done.returncode, first) == (1, "critical: ended by a bug: KeyError")
    assert others[0] == "Traceback (most recent call last):"
    assert others[-1] == "KeyError: 'name \\x1b[2J'"


def test_a_bug_as_json() -> None:
    done = python(BUG.format(style="json"), stderr=subprocess.PIPE)
    (entry,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, entry["level"]) == (1, "critical")
    assert "KeyError" in entry["traceback"]


def test_a_bug_does_not_wait_for_its_reader() -> None:
    reader, writer = full_pipe()
    assert python(BUG.format(style="text"), stderr=writer).returncode == 1
    os.close(reader)
    os.close(writer)


HOOKS = """
import logging, sys, threading, warnings
from vhost_balloon.log import setup as log_setup
log_setup.catch_all(log_setup.set_up("info", "json"))
warnings.warn("a warning")
class Bad:
    def __del__(self):
        raise ValueError("in del")
Bad()
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
logging.getLogger("a.library").error("from elsewhere")
try:
    raise OSError(24, "Too many open files")
except OSError:
    for _ in range(100):
        logging.getLogger("trio.serve_listeners").error("accept", exc_info=True)
"""


def test_output_of_python_and_libraries_is_in_the_log() -> None:
    done = python(HOOKS, stderr=subprocess.PIPE)
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(entry["level"], entry.get("traceback", "").split("\n")[-1]) for entry in entries] == [
        ("warning", ""),
        ("error", "ValueError: in del"),
        ("error", "ZeroDivisionError: division by zero"),
        ("error", ""),
        ("warning", ""),
    ]
    assert "UserWarning: a warning" in entries[0]["message"]
    text = "a client has to wait: Too many open files: raise LimitNOFILE= (ulimit -n)"
    assert entries[-1]["message"] == text


def test_none_of_it_waits_for_a_reader() -> None:
    reader, writer = full_pipe()
    assert python(HOOKS, stderr=writer).returncode == 0
    os.close(reader)
    os.close(writer)


BACKGROUND = """
import os, termios, sys
mode = termios.tcgetattr(2)
mode[3] |= termios.TOSTOP
termios.tcsetattr(2, termios.TCSANOW, mode)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    from vhost_balloon.log import output as log_output, setup as log_setup
    log_output.prepare_descriptors()
    log_setup.set_up().handle(log_setup.logging.LogRecord("", 30, "", 0, "seen", (), None))
    os._exit(0)
sys.exit(os.waitpid(child, os.WUNTRACED)[1])
"""


def test_a_terminal_does_not_stop_a_background_job_that_logs() -> None:
    master, terminal = pty.openpty()
    done = python(
        BACKGROUND,
        stdin=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    assert done.returncode == 0
    assert read_until(master, "\n") == "warning: seen\r\n"
    os.close(master)
    os.close(terminal)


# No descriptors


@pytest.mark.parametrize("where", ["control", "vm1.sock", "metrics"])
def test_hundreds_of_clients_without_descriptors_are_a_handful_of_lines(
    tmp_path: Path, where: str
) -> None:
    reader, writer = os.pipe()
    options = ["--metrics-address=127.0.0.1:0"]
    limit = (64, 64)
    with (
        started(
            tmp_path,
            *options,
            stderr=writer,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit),
        ) as control,
        ExitStack() as clients,
    ):
        url = read_until(reader, "serving")
        port = int(re.findall(r":(\d+)/metrics", url)[0])
        pid = pid_of(control)
        for number in range(300):
            if where == "metrics":
                clients.enter_context(socket.create_connection(("127.0.0.1", port)))
                continue
            sock = clients.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            try:
                sock.connect(f"{tmp_path}/{where}")
            except BlockingIOError:
                if number > 100:
                    break
        said = ""
        if where == "control":
            said = read_until(reader, "a client has to wait: Too many open files")
        else:  # control clients take the rest
            crowd = [clients.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
            for sock in crowd:
                sock.connect(str(control))
            said = read_until(reader, "has to wait: Too many open files")
        assert len(os.listdir(f"/proc/{pid}/fd")) <= limit[0]
        time.sleep(1)  # trio tries ten times a second
        said += read_until(reader, "\n") if "LimitNOFILE" not in said else ""
        while readable(reader):
            said += os.read(reader, 1 << 16).decode()
        assert "Traceback" not in said
        shown = [line for line in said.splitlines() if "wait" in line or "refused" in line]
        assert len(shown) <= 2, "one about front ends, one about clients"
        assert "raise LimitNOFILE=" in said
        clients.close()
        with QMPClient(control) as qmp:
            assert qmp.execute("query-vms")
    os.close(reader)
    os.close(writer)
