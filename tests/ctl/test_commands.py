"""vhost-balloonctl's commands against the daemon, with simulated guests."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import vhost_balloon
from protocol.virtio_balloon import Queue
from tests.support.ctl_command import CTL, Done, ctl, plain, vm_served
from tests.support.end_to_end import by_hand, eventually
from vhost_balloon.simulator.guest import running_guest

MIB = 1 << 20


async def test_list_and_status(tmp_path: Path) -> None:
    async with (
        vm_served(tmp_path, "vm1") as host,
        vm_served(tmp_path, "vm 2"),
        by_hand(host.path()),
    ):
        done = await ctl(tmp_path, "list")
        assert (done.status, done.err) == (0, "")
        head, two, one = done.out.splitlines()
        assert head.split()[:4] == ["VM", "STATE", "MEMORY", "TARGET"]
        assert one.split()[:4] == ["vm1", "done", "64", "MiB"]
        assert two.startswith("vm 2  disconnected ")
        assert (await ctl(tmp_path, "list", "--names")).out == "vm 2\nvm1\n"
        assert (await ctl(tmp_path, "list", "--names", "--json")).json() == ["vm 2", "vm1"]
        vms = (await ctl(tmp_path, "list", "--json")).json()
        assert [vm["id"] for vm in vms] == ["vm 2", "vm1"]
        status = (await ctl(tmp_path, "status", "vm1", "--json")).json()
        assert status["socket-path"] == str(host.path())
        assert status["front-end-pid"] == os.getpid()
        text = (await ctl(tmp_path, "status", "vm1")).out
        assert text.startswith("vm1: done\n")
        assert f"process {os.getpid()}\n" in text
        absent = await ctl(tmp_path, "status", "vm3")
        line = "vhost-balloonctl: there is no VM 'vm3' (known VMs: vm 2, vm1)\n"
        assert absent == (1, "", line)


async def test_one_vm_by_its_control_socket(tmp_path: Path) -> None:
    """The daemon gives the VM's name, not the socket's file."""
    path = tmp_path / "other"
    async with vm_served(tmp_path), by_hand(tmp_path / "vm1.sock"):
        (tmp_path / "vm1.control").rename(path)
        for words in ((f"--control-socket={path}",), ("--control-socket", str(path))):
            assert plain_lines(await anywhere(*words, "list", "--names")) == ["vm1"]
            assert plain_lines(await anywhere("list", "--names", *words)) == ["vm1"]
        option = f"--control-socket={path}"
        assert plain_lines(await anywhere("list", option))[1].startswith("vm1  done ")
        assert (await anywhere("set", "vm1", "48M", option)).status == 0
        assert (await anywhere("status", "vm1", "--json", option)).json()["target"] == 48 * MIB
        absent = "vhost-balloonctl: there is no VM 'other' (known VMs: vm1)\n"
        assert await anywhere("status", "other", option) == (1, "", absent)
        assert await anywhere("reload", "other", option) == (1, "", absent)


async def anywhere(*words: str) -> Done:
    return await trio.to_thread.run_sync(plain, *words)


def plain_lines(done: Done) -> list[str]:
    assert (done.status, done.err) == (0, "")
    return done.out.splitlines()


async def test_names_with_control_characters_are_escaped(tmp_path: Path) -> None:
    async with vm_served(tmp_path, "a\x1b[2J\nb"):
        for command in (["list"], ["list", "--names"], ["status", "a\x1b[2J\nb"]):
            done = await ctl(tmp_path, *command)
            assert done.status == 0
            assert "a\\x1b[2J\\nb" in done.out
            assert "\x1b" not in done.out
        done = await ctl(tmp_path, "set", "a\x1b[2J\nb", "50M")
        assert (done.status, done.err.count("\n")) == (1, 1)
        assert "\x1b" not in done.err


async def test_set(tmp_path: Path) -> None:
    async with (
        vm_served(tmp_path) as host,
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


async def test_set_keeps_the_policy_away(tmp_path: Path) -> None:
    async with vm_served(tmp_path) as host, by_hand(host.path()):
        assert (await ctl(tmp_path, "set", "vm1", "48M")).status == 0
        assert (host.vm().statistics().held, host.vm().statistics().held_for) == (True, None)
        text = (await ctl(tmp_path, "status", "vm1")).out
        assert "leaves it alone (manual order)\n" in text
        assert (await ctl(tmp_path, "set", "vm1", "48M", "--hold=100")).status == 0
        assert 90 < (host.vm().statistics().held_for or 0) < 100
        assert (await ctl(tmp_path, "status", "vm1", "--json")).json()["held"]


@pytest.mark.parametrize("seconds", ["0", "-1", "1.5", "x", "31536001", ""])
def test_the_time_of_a_hold_has_a_range(seconds: str) -> None:
    done = plain("set", "vm1", "48M", f"--hold={seconds}")
    assert (done.status, done.out) == (2, "")
    assert "is not a whole number of seconds from 1 to 31536000 (a year)" in done.err


async def test_set_takes_a_size_that_can_only_be_a_mistake_by_force(tmp_path: Path) -> None:
    async with vm_served(tmp_path) as host, by_hand(host.path()):
        done = await ctl(tmp_path, "set", "vm1", "1024")
        hint = "1024 is 1 KiB, less than a guest can run on; write 1024M for MiB"
        text = f"vhost-balloonctl: {hint} (--force sets it all the same)\n"
        assert done == (2, "", text)
        assert host.vm().statistics().target == 64 * MIB
        assert (await ctl(tmp_path, "set", "vm1", "16M")).out == "vm1: target 16 MiB\n"
        done = await ctl(tmp_path, "set", "vm1", "1024", "--force")
        assert done == (0, "vm1: target 4 KiB\n", "")


async def test_set_before_the_driver_is_ready(tmp_path: Path) -> None:
    async with (
        vm_served(tmp_path) as host,
        by_hand(host.path(), features=None) as guest,
    ):
        done = await ctl(tmp_path, "set", "vm1", "48M")
        text = "vm1: target 48 MiB (pending: the guest's driver is not ready)\n"
        assert done == (0, text, "")
        assert (await ctl(tmp_path, "set", "vm1", "48M", "--json")).json()["pending"]
        await guest.start()
        assert host.vm().statistics().target == 48 * MIB


async def test_set_gives_up_on_a_guest_that_does_nothing(tmp_path: Path) -> None:
    async with vm_served(tmp_path) as host, by_hand(host.path()):
        done = await ctl(tmp_path, "set", "vm1", "48M", "--wait", "--timeout=0.5")
        assert (done.status, done.err.count("\n")) == (1, 1)
        assert "vm1 did not reach its target within 0.5 s: moving, actual 64 MiB" in done.err
        done = await ctl(tmp_path, "set", "vm1", "48M", "--wait")
        text = "vm1 is stuck: actual 64 MiB, target 48 MiB"
        assert done == (1, "", f"vhost-balloonctl: {text}\n")


async def test_set_fails_when_its_vm_goes_away(tmp_path: Path, nursery: trio.Nursery) -> None:
    ended: list[Done] = []

    async def wait() -> None:
        ended.append(await ctl(tmp_path, "set", "vm1", "48M", "--wait"))

    async with vm_served(tmp_path) as host:
        async with by_hand(host.path()):
            nursery.start_soon(wait)
            await eventually(lambda: host.vm().statistics().target == 48 * MIB)
        await eventually(lambda: bool(ended))
    assert ended == [(1, "", "vhost-balloonctl: vm1 went away\n")]


async def test_disconnect(tmp_path: Path) -> None:
    """The order is carried out, and the warning is one line."""
    warning = (
        "vhost-balloonctl: vm1: its QEMU keeps running without the balloon, but aborts at the "
        "guest's next reset or at `stop` and `cont`: shut the guest down and start QEMU again\n"
    )
    async with vm_served(tmp_path) as host:
        for words, out in (
            ((), "vm1: the front end is disconnected\n"),
            (("--json",), '{"id": "vm1", "disconnected": true}\n'),
        ):
            async with by_hand(host.path()):
                assert await ctl(tmp_path, "disconnect", "vm1", *words) == (0, out, warning)
            assert not host.vm().attached
        done = await ctl(tmp_path, "disconnect", "vm1")
        text = "No balloon device has been activated: VM 'vm1' has no front end"
        assert done == (1, "", f"vhost-balloonctl: {text}\n")
        absent = "vhost-balloonctl: there is no VM 'vm2' (known VMs: vm1)\n"
        assert await ctl(tmp_path, "disconnect", "vm2") == (1, "", absent)


async def test_stats(tmp_path: Path) -> None:
    async with (
        vm_served(tmp_path) as host,
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
    async with vm_served(tmp_path) as host, by_hand(host.path()):
        done = await ctl(tmp_path, "stats", "vm1", "--timeout=0.2")
        text = "the guest gave no statistics within 0.2 s"
        assert done == (1, "", f"vhost-balloonctl: {text}\n")
        done = await ctl(tmp_path, "stats", "vm1", "--last")
        assert done == (1, "", "vhost-balloonctl: vm1 has not sent statistics yet\n")


async def test_stats_of_a_guest_that_knows_nothing(tmp_path: Path) -> None:
    async with vm_served(tmp_path) as host, by_hand(host.path()) as guest:
        ring = guest.rings[Queue.STATS]
        ring.add([guest.buffer(b"\xff" * 100)])
        ring.kick()
        await eventually(lambda: host.vm().statistics().stats_last_update > 0)
        done = await ctl(tmp_path, "stats", "vm1", "--last", "--json")
        assert done.json()["stats"] == {}
        assert (await ctl(tmp_path, "stats", "vm1", "--last")).status == 0


async def test_pause_and_resume(tmp_path: Path) -> None:
    async with (
        vm_served(tmp_path) as host,
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
    async with vm_served(tmp_path):
        for words in (["set", "vm1", "1G"], ["set", "vm1", "1G", "--wait"], ["stats", "vm1"]):
            done = await ctl(tmp_path, *words)
            assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    ("redirection", "text"),
    [
        (">&-", "standard output is closed"),
        (">/dev/full", "cannot write to standard output: No space left on device"),
    ],
)
async def test_a_write_error_on_standard_output(
    tmp_path: Path, redirection: str, text: str
) -> None:
    async with vm_served(tmp_path):
        command = f"{shlex.join(CTL)} {shlex.quote(f'--folder={tmp_path}')} list {redirection}"
        done = await trio.run_process(["sh", "-c", command], check=False, capture_stderr=True)
        assert (done.returncode, done.stderr.decode()) == (1, f"vhost-balloonctl: {text}\n")


async def test_a_closed_standard_error_leaves_only_the_status(tmp_path: Path) -> None:
    command = f"{shlex.join(CTL)} --folder={tmp_path}/nope list 2>&-"
    done = await trio.run_process(["sh", "-c", command], check=False, capture_stdout=True)
    assert (done.returncode, done.stdout) == (1, b"")


# Without a daemon


@pytest.mark.parametrize(
    ("what", "file"), [("rules", "alerts.yml"), ("dashboard", "dashboard.json")]
)
def test_monitoring(what: str, file: str) -> None:
    folder = Path(vhost_balloon.__file__).parent / "monitoring"
    assert plain("monitoring", what) == (0, (folder / file).read_text(), "")


def test_it_starts_fast() -> None:
    """It does not import slow modules."""
    script = "import sys; from vhost_balloon.ctl import commands; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    heavy = {"trio", "construct", "prometheus_client", "dataclasses", "inspect", "asyncio",
             "subprocess", "importlib.resources", "protocol", "protocol.qmp",
             "vhost_balloon.ctl.hub"}  # fmt: skip
    assert not heavy & set(done.stdout.split())
