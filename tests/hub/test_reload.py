"""Reading the hub's configuration files again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.support.end_to_end import LogLines
from vhost_balloon.config import in_time
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import OperatorError
from vhost_balloon.hub import config
from vhost_balloon.hub.reload import Configuration, changed, reload_on_signal
from vhost_balloon.hub.vms import HUB_PLACES
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.settings import Mode, PolicySettings
from vhost_balloon.service.systemd import Notifier


async def test_settings_are_read_again_and_applied(tmp_path: Path) -> None:
    applied: list[PolicySettings] = []
    file = tmp_path / "hub.toml"
    file.write_text('[policy]\nmode = "on"\nzfs-arc = true\n')
    configuration = Configuration(PolicySettings(), [file], applied.append)
    assert await configuration.reload() == ["policy.mode", "policy.zfs-arc"]
    assert await configuration.reload() == []
    assert applied == [PolicySettings(Mode.ON, zfs_arc=True)] * 2


async def test_a_mistake_changes_nothing(tmp_path: Path) -> None:
    applied: list[PolicySettings] = []
    file = tmp_path / "hub.toml"
    file.write_text('[policy]\nmode = "maybe"\n')
    configuration = Configuration(PolicySettings(), [file], applied.append)
    with pytest.raises(OperatorError, match="line 2"):
        await configuration.reload()
    assert applied == []
    file.write_text('[policy]\nmode = "on"\n')
    assert await configuration.reload() == ["policy.mode"]


async def test_without_files_there_is_nothing_to_read() -> None:
    with pytest.raises(OperatorError, match="without --config"):
        await Configuration(PolicySettings(), [], lambda settings: None).reload()


async def test_a_file_system_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And costs one thread, however often a reload is asked for."""
    goes_on = threading.Event()
    looks: list[Sequence[Path]] = []

    def hang(files: Sequence[Path], *, is_start: bool) -> PolicySettings:
        looks.append(files)
        goes_on.wait(60)
        return PolicySettings(zfs_arc=True)

    monkeypatch.setattr(config, "read_settings", hang)
    monkeypatch.setattr(in_time, "PATIENCE", 0.05)
    applied: list[PolicySettings] = []
    file = tmp_path / "hub.toml"
    configuration = Configuration(PolicySettings(), [file], applied.append)
    try:
        with pytest.raises(OperatorError, match=f"^cannot read {file} within 0.05 s: the file"):
            await configuration.reload()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(give_up, configuration)
        assert looks == [[file]]
        assert applied == []
    finally:
        goes_on.set()
    monkeypatch.setattr(in_time, "PATIENCE", 20)
    assert await configuration.reload() == ["policy.zfs-arc"]


async def give_up(configuration: Configuration) -> None:
    with pytest.raises(OperatorError, match="the file system hangs"):
        await configuration.reload()


async def test_a_service_manager_that_reads_nothing_does_not_delay_a_reload(
    tmp_path: Path, autojump_clock: MockClock, log_lines: LogLines
) -> None:
    configuration = Configuration(PolicySettings(), [], lambda settings: None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier(str(tmp_path / "notify"))
        while notifier.try_send("STATUS=not read"):
            pass
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(
                        reload_on_signal, configuration, notifier, InternalErrors(HUB_PLACES)
                    )
        notifier.close()
    assert len(log_lines.lines) == 20
    assert "started without --config" in log_lines.lines[0]


def test_changes_are_named_as_in_the_file() -> None:
    plain, heavy = VmSettings(), VmSettings(weight=200)
    before = PolicySettings(vms={"web1": plain, "web2": plain, "web3": heavy})
    after = PolicySettings(reserve=0.1, cgroup=str(Path("/")), vms={"web1": heavy, "web4": plain})
    assert list(changed(before, after)) == ["policy.reserve", "policy.cgroup", "vm.web1", "vm.web3"]
    assert list(changed(after, after)) == []
    # The table's spelling, not the VM's name.
    spelled = PolicySettings(vms={r"\xfcber": heavy}, names={"über": r"\xfcber"})
    assert list(changed(PolicySettings(), spelled)) == [r"vm.\xfcber"]
    # web2 has the defaults before and after.
    other = PolicySettings(defaults=heavy, vms={"web1": plain})
    assert list(changed(PolicySettings(vms={"web1": plain}), other)) == ["defaults"]
