"""The environment from the service manager: descriptors, store, watchdog."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest

from tests.support.end_to_end import LogLines
from vhost_balloon.service import environment

# Descriptors handed over


def child(code: str, variables: dict[str, str], count: int = 2) -> subprocess.CompletedProcess[str]:
    """Run code in a process that was handed count pipes; PID in variables is its process ID."""
    ends = [fd for _ in range(count) for fd in os.pipe()][:count]
    script = (
        "import os, sys; e = os.environ\n"
        f"[os.dup2(fd, 50 + n) for n, fd in enumerate({ends})]\n"
        f"[os.dup2(50 + n, 3 + n) for n in range({count})]\n"
        f"e.update({{k: v.replace('PID', str(os.getpid())) for k, v in {variables}.items()}})\n"
        "from vhost_balloon.service import environment\n"
        "from vhost_balloon.errors import OperatorError\n"
        f"{code}"
    )
    try:
        return subprocess.run(
            [sys.executable, "-c", script], pass_fds=ends, capture_output=True, text=True
        )
    finally:
        for fd in ends:
            os.close(fd)


NAMES = "print([(name, fd.fileno()) for name, fd in environment.inherited()])"


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"LISTEN_FDNAMES": "web1:control"}, "[('web1', 3), ('control', 4)]"),
        ({"LISTEN_FDNAMES": ".a:"}, "[('.a', 3), ('', 4)]"),
        ({}, "[('unknown', 3), ('unknown', 4)]"),
        ({"LISTEN_PID": "1"}, "[]"),
        ({"LISTEN_PID": ""}, "[]"),
        ({"LISTEN_FDS": ""}, "[]"),
        ({"LISTEN_FDS": "0"}, "[]"),
    ],
)
def test_descriptors_are_handed_over_by_name(variables: dict[str, str], found: str) -> None:
    done = child(NAMES, {"LISTEN_PID": "PID", "LISTEN_FDS": "2"} | variables)
    assert (done.stdout.strip(), done.stderr) == (found, "")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LISTEN_FDS": "-1"}, "is not a number"),
        ({"LISTEN_FDS": "two"}, "is not a number"),
        ({"LISTEN_FDS": "9" * 50}, "is not a number"),
        ({"LISTEN_FDS": "9" * 9}, "exceeds"),
        ({"LISTEN_FDNAMES": "a:b:c"}, "3 names for 2 descriptors"),
        ({"LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}, "descriptor 5: Bad file descriptor"),
    ],
)
def test_nonsense_is_an_operators_mistake(variables: dict[str, str], said: str) -> None:
    code = f"try: {NAMES}\nexcept OperatorError as error: print(error)"
    done = child(code, {"LISTEN_PID": "PID", "LISTEN_FDS": "2"} | variables)
    assert said in done.stdout, done.stderr


def test_descriptors_do_not_reach_children_and_are_not_found_twice() -> None:
    code = (
        f"import fcntl; fds = environment.inherited(); assert len(fds) == 2; {NAMES}\n"
        "print([fcntl.fcntl(3, fcntl.F_GETFD), fcntl.fcntl(4, fcntl.F_GETFD)])\n"
        "print([k for k in e if k.startswith('LISTEN')])"
    )
    done = child(code, {"LISTEN_PID": "PID", "LISTEN_FDS": "2"})
    assert done.stdout.splitlines() == ["[]", f"[{fcntl.FD_CLOEXEC}, {fcntl.FD_CLOEXEC}]", "[]"]


# Variables


@pytest.mark.parametrize(("text", "limit"), [(None, 0), ("", 0), ("0", 0), ("16384", 16384)])
def test_size_of_the_store(monkeypatch: pytest.MonkeyPatch, text: str | None, limit: int) -> None:
    monkeypatch.delenv("FDSTORE", raising=False)
    if text is not None:
        monkeypatch.setenv("FDSTORE", text)
    assert environment.fdstore_limit() == limit


def test_watchdog_interval(monkeypatch: pytest.MonkeyPatch, log_lines: LogLines) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    assert environment.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert environment.watchdog_interval() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert environment.watchdog_interval() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert environment.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert environment.watchdog_interval() is None
    assert log_lines.having("warning", "WATCHDOG_USEC=soon in the environment is not a number")
