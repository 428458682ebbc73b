"""Standard descriptors that are closed, and output that cannot be written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.rig.qmp import QMPClient
from tests.support.command import COMMAND
from tests.support.logged_daemon import SECONDS, full_pipe, python, wait_for
from vhost_balloon import __version__


@pytest.mark.parametrize("closed", ["2>&-", "<&-", ">&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_it_starts_with_closed_descriptors(tmp_path: Path, closed: str) -> None:
    control = tmp_path / "control"
    line = f"exec {' '.join(COMMAND)} --socket-path={tmp_path}/a --control-socket={control}"
    with subprocess.Popen(["sh", "-c", f"{line} {closed}"], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(control)
            numbers = {">": "1", "<": "0", "2": "2"}
            for part in closed.split():
                link = os.readlink(f"/proc/{process.pid}/fd/{numbers[part[0]]}")
                assert link == "/dev/null"
            with QMPClient(control) as qmp:
                assert qmp.execute("query-vms")
            process.terminate()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def test_a_root_without_dev_null() -> None:
    program = """
import os
from vhost_balloon.log import output as log_output
log_output._FILLERS = (("/nonexistent/null", os.O_RDWR), log_output._FILLERS[1])
os.close(0), os.close(2)
log_output.prepare_descriptors()
assert os.open("/", os.O_PATH) > 2
try:
    log_output.Output().write(b"lost")
except OSError as error:
    print(error.strerror)
"""
    done = python(program, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, "Bad file descriptor\n")


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("mistake", ["--nonsense", "--socket-path=/nonexistent/a"])
def test_an_operators_mistake_that_cannot_be_written(closed: str, mistake: str) -> None:
    line = f"exec {' '.join(COMMAND)} {mistake} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_an_operators_mistake_does_not_wait_for_its_reader() -> None:
    reader, writer = full_pipe()
    done = subprocess.run([*COMMAND, "--nonsense"], stderr=writer, timeout=SECONDS, check=False)
    assert done.returncode == 2
    os.close(reader)
    os.close(writer)


ANSWERS = {
    "--version": f"vhost-balloon {__version__}\n",
    "--print-capabilities": '{"type": "balloon"}\n',
}


@pytest.mark.parametrize("option", [*ANSWERS, "--help"])
@pytest.mark.parametrize("end", [">&-", ">/dev/full", "2>&-", "<&- 2>&-"])
def test_output_that_cannot_be_written(option: str, end: str) -> None:
    line = f"exec {' '.join(COMMAND)} {option} {end}"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if end == ">/dev/full":
        text = "vhost-balloon: cannot write to standard output: No space left on device\n"
        assert (done.returncode, done.stderr) == (2, text)
    else:
        assert (done.returncode, done.stderr) == (0, "")
    if ">" in end[1:]:  # standard output exists
        assert done.stdout == ANSWERS.get(option, done.stdout) != ""


@pytest.mark.parametrize("reads", [True, False])
def test_output_into_a_pipe(reads: bool) -> None:
    reader, writer = full_pipe()
    process = subprocess.Popen([*COMMAND, "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    if reads:
        with os.fdopen(reader) as stream:
            assert stream.read().endswith("--log-format {text,json}\n")
    else:
        os.close(reader)
    _, said = process.communicate(timeout=SECONDS)
    lines = b"" if reads else b"vhost-balloon: cannot write to standard output: Broken pipe\n"
    assert (process.returncode, said) == (0 if reads else 2, lines)
