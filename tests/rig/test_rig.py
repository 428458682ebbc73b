"""The rig itself, with a real guest and QEMU's own balloon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.devices.memory import hotplug_dimm
from tests.rig.errors import CommandError, GuestError, RigTimeout
from tests.rig.guest import Guest
from tests.rig.inside import workload
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.provisioning.sources import debian_archives
from tests.rig.waiting import wait_until
from tests.support.helpers import receive
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """One guest with QEMU's own balloon for all tests that leave it unchanged."""
    with Guest("qemu") as booted:
        yield booted


@pytest.mark.guest
def test_commands_tell_output_and_status(guest: Guest) -> None:
    assert guest.run("echo one; echo two >&2") == "one\ntwo\n"
    assert guest.run("printf no-newline") == "no-newline"
    long = "x" * 10_000
    assert guest.run(f"echo {long}") == f"{long}\n"
    with pytest.raises(CommandError, match="status 3") as caught:
        guest.run("echo reason; exit 3")
    assert caught.value.output == "reason\n"


@pytest.mark.guest
def test_console_is_free_again_after_a_command_that_took_too_long(guest: Guest) -> None:
    with pytest.raises(RigTimeout):
        guest.run("sleep 2; echo late", timeout=0.5)
    assert guest.run("echo next") == "next\n"


@pytest.mark.guest
def test_jobs_run_while_the_console_is_used(guest: Guest) -> None:
    job = guest.spawn("sleep 1; echo done; exit 4")
    assert guest.run("echo meanwhile") == "meanwhile\n"
    with pytest.raises(CommandError, match="status 4") as caught:
        job.wait(20)
    assert caught.value.output == "done\n"


@pytest.mark.guest
def test_meminfo_is_in_bytes(guest: Guest) -> None:
    assert 900 * MiB < guest.meminfo()["MemTotal"] < GiB


@pytest.mark.guest
def test_stopped_guest_answers_once_it_continues(guest: Guest) -> None:
    guest.stop()
    with pytest.raises(RigTimeout):
        guest.run("echo paused", timeout=1)
    guest.cont()
    assert guest.run("echo awake") == "awake\n"


@pytest.mark.guest
def test_reporting_gives_freed_memory_back(guest: Guest) -> None:
    workload.fill(guest, 600 * MiB)
    assert guest.resident() > 600 * MiB
    workload.free(guest)
    took = wait_until(lambda: guest.resident() < 250 * MiB, 20)
    print(f"QEMU's own device: 600 MiB came back {took:.1f} s after they were freed")


@pytest.mark.guest
def test_inflate_and_deflate_with_qemus_own_device(guest: Guest) -> None:
    wait_until(lambda: guest.resident() < 250 * MiB, 20)  # nothing left to report
    before, freed = guest.meminfo()["MemFree"], guest.vmstat()["balloon_deflate"]
    inflated = workload.set_target(guest.qmp, 768 * MiB)
    assert guest.meminfo()["MemFree"] < before - 200 * MiB
    assert guest.resident() < 600 * MiB
    deflated = workload.set_target(guest.qmp, GiB)
    print(f"QEMU's own device: 256 MiB inflated in {inflated:.2f} s, deflated in {deflated:.2f} s")
    # MemFree lags: pages being reported do not count as free.
    assert guest.vmstat()["balloon_deflate"] - freed >= 256 * MiB // 4096


@pytest.mark.guest
def test_balloon_deflates_under_memory_pressure(guest: Guest) -> None:
    workload.set_target(guest.qmp, 512 * MiB)
    workload.press(guest, 600 * MiB).wait(90)
    workload.release_pressure(guest)
    workload.set_target(guest.qmp, GiB)


@pytest.mark.guest
def test_console_loses_nothing_while_orphans_end(guest: Guest) -> None:
    guest.run(
        "touch /run/orphans; (while [ -e /run/orphans ]; do"
        " for i in 1 2 3 4 5 6 7 8; do (sleep 0.0$i &); done; sleep 0.03;"
        " done) >/dev/null 2>&1 &"
    )
    long = "x" * 400
    try:
        for number in range(80):
            assert guest.console.run(f"echo {long} {number}", 20).strip() == f"{long} {number}"
    finally:
        guest.run("rm /run/orphans")


@pytest.mark.guest
def test_integrity_workload_counts_and_console_stays_free(guest: Guest) -> None:
    run = workload.Integrity(guest, seconds=8, most=20)
    wait_until(lambda: run.report().written > 2, 30)
    report = run.wait(120)
    assert report.bad_bytes == 0
    assert report.finished
    assert report.verified >= report.written - report.deleted


@pytest.mark.guest
def test_integrity_workload_notices_a_changed_byte(guest: Guest) -> None:
    run = workload.Integrity(guest, seconds=6, most=200)
    wait_until(lambda: run.report().written > 1, 30)
    guest.run("printf X | dd of=/tmp/integrity/1 bs=1 seek=2000000 conv=notrunc 2>/dev/null")
    assert run.wait(120).bad_bytes > 0


@pytest.mark.guest
def test_driver_reload_reset_and_reboot(guest: Guest) -> None:
    workload.set_target(guest.qmp, 768 * MiB)
    guest.unload_driver()
    assert "virtio_balloon" not in guest.run("lsmod")
    guest.load_driver()
    guest.reset()
    guest.reboot()
    assert "virtio_balloon" in guest.run("lsmod")
    workload.set_target(guest.qmp, GiB)


@pytest.mark.guest
@pytest.mark.parametrize(
    "memory",
    [Memory(backing="file"), Memory(nodes=2), Memory(slots=1), Memory(4 * GiB)],
    ids=["file", "numa", "dimm", "4 GiB"],
)
def test_kinds_of_memory(memory: Memory) -> None:
    with Guest("qemu", memory=memory, driver=False) as guest:
        if memory.slots:
            hotplug_dimm(guest)
        size = memory.size + memory.slots * GiB
        assert 0.85 * size < guest.meminfo()["MemTotal"] < size
        before = guest.resident()
        workload.fill(guest, 200 * MiB)
        assert before + 100 * MiB < guest.resident() < size


@pytest.mark.guest
def test_vhost_user_device_connects_to_its_back_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "vm.sock"))
        listener.listen()
        listener.settimeout(30)
        # Started in its own thread, since QEMU waits for our answer.
        guest = Guest(tmp_path / "vm.sock")
        with pytest.raises(GuestError, match="did not boot"):
            _start_and_hang_up(guest, listener)
        guest.close()


def _start_and_hang_up(guest: Guest, listener: socket.socket) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(guest.start)
        connection, _ = listener.accept()
        with connection:
            # GET_FEATURES: request 1, version 1, no payload
            assert receive(connection, 12) == bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
        started.result()


@pytest.mark.guest
def test_a_boot_that_fails_shows_qemus_words(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="Failed to connect"), Guest(tmp_path / "nobody"):
        pass


@pytest.mark.guest
def test_guests_die_with_their_owner() -> None:
    script = (
        "import os, signal\n"
        "from tests.rig.guest import Guest\n"
        "guest = Guest(); guest.start()\n"
        "print(guest.pid, guest.folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    owner = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    pid, folder = owner.stdout.split()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10)
    subprocess.run(["rm", "-r", folder], check=True)


def test_archives_are_read_from_both_formats(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://a.test/off trixie main\n"
        "deb [arch=amd64 signed-by=/k/one.gpg] http://a.test/one bookworm main contrib # note\n"
        "deb-src http://a.test/source trixie main\n"
        "deb cdrom:[Debian]/ trixie main\n"
        "deb http://a.test/security trixie-security main\n"
    )
    (parts / "debian.sources").write_text(
        "Types: deb deb-src\nURIs: http://a.test/two\nSuites: trixie trixie-updates\n"
        "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        "\n"
        "Enabled: no\nTypes: deb\nURIs: http://a.test/off\nSuites: trixie\nComponents: main\n"
        "\n"
        "Types: deb\nURIs: http://a.test/other\nSuites: trixie\nComponents: stable\n"
    )
    found = [(archive.uri, archive.suite) for archive in debian_archives(tmp_path)]
    assert found == [("http://a.test/two", "trixie"), ("http://a.test/one", "bookworm")]


def test_embedded_keys_survive(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "x.sources").write_text(
        "Types: deb\nURIs: http://a.test/x\nSuites: trixie\nComponents: main\n"
        "Signed-By:\n -----BEGIN-----\n .\n abc\n -----END-----\n"
    )
    (archive,) = debian_archives(tmp_path)
    assert archive.signed_by == "\n -----BEGIN-----\n .\n abc\n -----END-----"


def test_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.rig.provisioning.packages import cache_folder

    monkeypatch.setenv("VHOST_BALLOON_RIG", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("VHOST_BALLOON_RIG")
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    assert cache_folder() == tmp_path / "vhost-balloon/rig"
