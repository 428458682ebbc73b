"""vhost-balloonctl against the daemon, with simulated guests."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

import vhost_balloon
from tests.end_to_end import Host, by_hand, eventually, serving
from vhost_balloon.ctl import completion
from vhost_balloon.ctl.options import build_parser, commands
from vhost_balloon.simulator import running_guest

MIB = 1 << 20
CTL = (sys.executable, "-m", "vhost_balloon.ctl")


class Done(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, on one line, after it succeeded."""
        assert (self.status, self.err, self.out.count("\n")) == (0, "", 1)
        return json.loads(self.out)


async def ctl(directory: Path, *words: str) -> Done:
    """Run a command as an operator does."""
    done = await trio.run_process(
        [*CTL, f"--control-socket={directory}/control", *words],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def control(directory: Path) -> str:
    return f"--control-socket={directory}/control"


async def test_list_and_status(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, control(tmp_path), names=("vm1", "vm 2")) as host,
        by_hand(host.path()),
    ):
        done = await ctl(tmp_path, "list")
        assert (done.status, done.err) == (0, "")
        head, one, two = done.out.splitlines()
        assert head.split()[:4] == ["VM", "STATE", "MEMORY", "TARGET"]
        assert one.split()[:4] == ["vm1", "done", "64", "MiB"]
        assert two.startswith("vm 2  disconnected ")
        assert (await ctl(tmp_path, "list", "--names")).out == "vm1\nvm 2\n"
        assert (await ctl(tmp_path, "list", "--names", "--json")).json() == ["vm1", "vm 2"]
        vms = (await ctl(tmp_path, "list", "--json")).json()
        assert [vm["id"] for vm in vms] == ["vm1", "vm 2"]
        status = (await ctl(tmp_path, "status", "vm1", "--json")).json()
        assert status["socket-path"] == str(host.path())
        assert status["front-end-pid"] == os.getpid()
        text = (await ctl(tmp_path, "status", "vm1")).out
        assert text.startswith("vm1: done\n")
        assert f"process {os.getpid()}\n" in text
        absent = await ctl(tmp_path, "status", "vm3")
        line = "vhost-balloonctl: there is no VM 'vm3' (there are: vm1, vm 2)\n"
        assert absent == (1, "", line)


async def test_names_that_would_steer_a_terminal(tmp_path: Path) -> None:
    async with serving(tmp_path, control(tmp_path), names=("a\x1b[2J\nb",)):
        for command in (["list"], ["list", "--names"], ["status", "a\x1b[2J\nb"]):
            done = await ctl(tmp_path, *command)
            assert done.status == 0
            assert "a\\x1b[2J\\nb" in done.out
            assert "\x1b" not in done.out
        done = await ctl(tmp_path, "set", "a\x1b[2J\nb", "5M")
        assert (done.status, done.err.count("\n")) == (1, 1)
        assert "\x1b" not in done.err


async def test_set(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, control(tmp_path)) as host,
        running_guest(host.path(), 64 * MIB),
    ):
        done = await ctl(tmp_path, "set", "vm1", "48M", "--wait")
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith("vm1: 48 MiB after ")
        assert host.vm().statistics().balloon == 16 * MIB
        found = (await ctl(tmp_path, "set", "vm1", "64G", "--wait", "--json")).json()
        assert (found["actual"], found["state"]) == (64 * MIB, "done")
        done = await ctl(tmp_path, "set", "vm1", "64G")
        assert done == (0, "vm1: target 64 MiB, all of its memory\n", "")
        found = (await ctl(tmp_path, "set", "vm1", "40M", "--json")).json()
        assert (found["target"], found["pending"]) == (40 * MIB, False)


async def test_set_before_the_driver_is_ready(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, control(tmp_path)) as host,
        by_hand(host.path(), features=None) as guest,
    ):
        done = await ctl(tmp_path, "set", "vm1", "48M")
        text = "vm1: target 48 MiB (pending: the guest's driver is not ready)\n"
        assert done == (0, text, "")
        assert (await ctl(tmp_path, "set", "vm1", "48M", "--json")).json()["pending"]
        await guest.start()
        assert host.vm().statistics().target == 48 * MIB


async def test_set_gives_up_on_a_guest_that_does_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, control(tmp_path)) as host, by_hand(host.path()):
        done = await ctl(tmp_path, "set", "vm1", "48M", "--wait", "--timeout=0.5")
        assert (done.status, done.err.count("\n")) == (1, 1)
        assert "vm1 did not get there within 0.5 s: moving, it keeps 64 MiB" in done.err
        done = await ctl(tmp_path, "set", "vm1", "48M", "--wait")
        text = "vm1 is stuck: it keeps 64 MiB, and 48 MiB was asked for"
        assert done == (1, "", f"vhost-balloonctl: {text}\n")


async def test_set_ends_with_its_vm(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, control(tmp_path)) as host:
        async with by_hand(host.path()):
            ended = await nursery.start(start_ctl, tmp_path, "set", "vm1", "48M", "--wait")
            await eventually(lambda: host.vm().statistics().target == 48 * MIB)
        assert await ended.receive() == (1, "", "vhost-balloonctl: vm1 went away\n")


async def start_ctl(
    directory: Path, *words: str, task_status: trio.TaskStatus[trio.MemoryReceiveChannel[Done]]
) -> None:
    """Run a command in the background; its end comes through the channel."""
    send, receive = trio.open_memory_channel[Done](1)
    task_status.started(receive)
    await send.send(await ctl(directory, *words))


async def test_stats(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, control(tmp_path)) as host,
        running_guest(host.path(), 64 * MIB),
    ):
        found = (await ctl(tmp_path, "stats", "vm1", "--json")).json()
        assert found["stats"]["stat-total-memory"] == 64 * MIB
        assert (await ctl(tmp_path, "stats", "vm1", "--last", "--json")).json() == found
        done = await ctl(tmp_path, "stats", "vm1")
        assert done.status == 0
        assert "total memory      64 MiB\n" in done.out
        assert host.vm().counters.requests.total() > 0


async def test_stats_of_a_silent_guest(tmp_path: Path) -> None:
    async with serving(tmp_path, control(tmp_path)) as host, by_hand(host.path()):
        done = await ctl(tmp_path, "stats", "vm1", "--timeout=0.2")
        text = "the guest gave no statistics within 0.2 s"
        assert done == (1, "", f"vhost-balloonctl: {text}\n")
        done = await ctl(tmp_path, "stats", "vm1", "--last")
        assert done == (1, "", "vhost-balloonctl: vm1 has not given statistics yet\n")


async def test_pause_and_resume(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, control(tmp_path)) as host,
        by_hand(host.path()) as guest,
    ):
        done = await ctl(tmp_path, "pause", "vm1")
        assert done == (0, "vm1: discarding of reported pages is paused (operator)\n", "")
        await guest.report((32 * MIB, 4 * MIB))
        assert host.vm().counters.refused_bytes["paused"] == 4 * MIB
        assert "paused: operator" in (await ctl(tmp_path, "list")).out
        found = (await ctl(tmp_path, "resume", "vm1", "--json")).json()
        assert found == {"id": "vm1", "reporting-paused": False, "pause-reasons": []}
        await guest.report((32 * MIB, 4 * MIB))
        assert host.vm().counters.refused_bytes["paused"] == 4 * MIB
        found = (await ctl(tmp_path, "pause", "vm1", "--json")).json()
        assert found == {"id": "vm1", "reporting-paused": True, "pause-reasons": ["operator"]}
        done = await ctl(tmp_path, "resume", "vm1")
        assert done == (0, "vm1: discarding of reported pages is not paused\n", "")


async def test_orders_to_a_vm_without_a_front_end(tmp_path: Path) -> None:
    async with serving(tmp_path, control(tmp_path)):
        for words in (["set", "vm1", "1G"], ["set", "vm1", "1G", "--wait"], ["stats", "vm1"]):
            done = await ctl(tmp_path, *words)
            assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
            assert "has no front end" in done.err
        assert (await ctl(tmp_path, "pause", "vm1")).status == 0


async def test_qemu_args(tmp_path: Path) -> None:
    folder = tmp_path / "a,b c"
    folder.mkdir()
    async with serving(folder, control(tmp_path)) as host:
        words = (await ctl(tmp_path, "qemu-args", "vm1", "--memory=1G", "--json")).json()
        path = str(host.path()).replace(",", ",,")
        assert words == [
            "-m", "1073741824b",
            "-object", "memory-backend-memfd,id=mem,size=1073741824b,share=on",
            "-machine", "memory-backend=mem",
            "-chardev", f"socket,id=balloon,path={path}",
            "-device",
            "vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,config_size=16",
        ]  # fmt: skip
        done = await ctl(tmp_path, "qemu-args", "vm1", "--memory=1G")
        assert shlex.split(done.out) == words
        assert done.out.count("\n") == 1
        assert "size=SIZE," in (await ctl(tmp_path, "qemu-args", "vm1")).out
        async with by_hand(host.path(), 64 * MIB):
            assert f"size={64 * MIB}b" in (await ctl(tmp_path, "qemu-args", "vm1")).out


async def test_watch_without_a_terminal(tmp_path: Path) -> None:
    async with serving(tmp_path, control(tmp_path), names=("vm1", "vm2")):
        done = await ctl(tmp_path, "watch", "--count=2", "--interval=0.1")
        assert done.status == 0
        blocks = done.out.split("\n\n")
        assert len(blocks) == 2
        assert all(block.splitlines()[2].startswith("vm1  disconnected") for block in blocks)
        done = await ctl(tmp_path, "watch", "--json", "--count=3", "--interval=0.01")
        looks = [json.loads(line) for line in done.out.splitlines()]
        assert [[vm["id"] for vm in vms] for vms in looks] == [["vm1", "vm2"]] * 3


async def test_watch_ends_with_the_daemon(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, control(tmp_path)) as host:
        ended = await nursery.start(start_ctl, tmp_path, "watch", "--json", "--interval=0.05")
        await clients(host, tmp_path)
    status, _, err = await ended.receive()
    assert (status, err.count("\n")) == (1, 1)
    assert f"the daemon on {tmp_path}/control closed the connection" in err


async def clients(host: Host, directory: Path) -> None:
    """Wait until a client is on the control socket: there is one connection more than ours."""
    path = f"{directory}/control"
    text = Path("/proc/net/unix")
    await eventually(lambda: text.read_text().count(path) > 1)


async def test_a_reader_that_goes_away_ends_watch_quietly(tmp_path: Path) -> None:
    async with serving(tmp_path, control(tmp_path)):
        process = await trio.lowlevel.open_process(
            [*CTL, control(tmp_path), "watch", "--interval=0.01"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some(100)
        await process.stdout.aclose()
        async with process.stderr:
            assert b"".join([part async for part in process.stderr]) == b""
        assert await process.wait() == 141


@pytest.mark.parametrize(
    ("redirection", "text"),
    [
        (">&-", "standard output is closed"),
        (">/dev/full", "cannot write to standard output: No space left on device"),
    ],
)
async def test_an_output_that_takes_nothing(tmp_path: Path, redirection: str, text: str) -> None:
    async with serving(tmp_path, control(tmp_path)):
        command = f"{shlex.join(CTL)} {shlex.quote(control(tmp_path))} list {redirection}"
        done = await trio.run_process(["sh", "-c", command], check=False, capture_stderr=True)
        assert (done.returncode, done.stderr.decode()) == (1, f"vhost-balloonctl: {text}\n")


async def test_without_a_standard_error_the_status_is_all(tmp_path: Path) -> None:
    command = f"{shlex.join(CTL)} --control-socket={tmp_path}/nope list 2>&-"
    done = await trio.run_process(["sh", "-c", command], check=False, capture_stdout=True)
    assert (done.returncode, done.stdout) == (1, b"")


# What needs no daemon


def plain(*words: str) -> Done:
    done = subprocess.run([*CTL, *words], capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("what", "file"), [("rules", "alerts.yml"), ("dashboard", "dashboard.json")]
)
def test_monitoring(what: str, file: str) -> None:
    folder = Path(vhost_balloon.__file__).parent / "monitoring"
    assert plain("monitoring", what) == (0, (folder / file).read_text(), "")


def test_it_starts_fast() -> None:
    """Nothing that takes longer to import than all the rest is imported."""
    script = "import sys; from vhost_balloon.ctl import commands; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    heavy = {"trio", "construct", "prometheus_client", "dataclasses", "inspect", "asyncio",
             "subprocess", "importlib.resources", "protocol", "protocol.qmp"}  # fmt: skip
    assert not heavy & set(done.stdout.split())


# Completion


def complete(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last word, with the daemon's answers in a folder's stub."""
    stub = tmp_path / "vhost-balloonctl"
    stub.write_text('#!/bin/sh\necho "$@" >>calls\nprintf "web1\\nweb 2\\ndb\\n"\n')
    stub.chmod(0o755)
    quoted = " ".join(map(shlex.quote, ("vhost-balloonctl", *words)))
    script = f"""{completion.script("bash")}
COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _vhost_balloonctl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-uc", script], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout != "\n" else []


def test_bash_completes_commands_options_and_vms(tmp_path: Path) -> None:
    assert complete(tmp_path, "") == list(commands(build_parser()))
    assert complete(tmp_path, "st") == ["status", "stats"]
    assert complete(tmp_path, "status", "") == ["web1", "web\\ 2", "db"]
    assert complete(tmp_path, "set", "--wait", "--timeout", "=", "5", "w") == ["web1", "web\\ 2"]
    assert complete(tmp_path, "set", "--w") == ["--wait"]
    assert complete(tmp_path, "set", "web1", "") == []
    assert complete(tmp_path, "monitoring", "") == ["rules", "dashboard"]
    assert complete(tmp_path, "completion", "z") == ["zsh"]
    assert complete(tmp_path, "--cont") == ["--control-socket"]
    assert complete(tmp_path, "--control-socket", "=", "vhost-b") == ["vhost-balloonctl"]


def test_bash_asks_the_daemon_that_the_line_names(tmp_path: Path) -> None:
    assert complete(tmp_path, "--control-socket", "=", "/x y", "status", "d") == ["db"]
    assert complete(tmp_path, "pause", "--control-socket", "/z", "d") == ["db"]
    calls = (tmp_path / "calls").read_text()
    assert calls == "--control-socket /x y list --names\n--control-socket /z list --names\n"


def test_zsh_gets_every_command_and_option() -> None:
    script = completion.script("zsh")
    assert script.startswith("#compdef vhost-balloonctl\n")
    for name in commands(build_parser()):
        assert f"'{name}:" in script
    assert "'--wait[until the guest has got there]'" in script
    assert "'1:VM:_vhost_balloonctl_vms'" in script
    assert "@" not in script.replace("${(@f)", "").replace('"$@"', "").replace("[@]", "")
