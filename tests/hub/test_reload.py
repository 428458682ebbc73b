"""Reading the hub's configuration files again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhost_balloon.errors import OperatorError
from vhost_balloon.hub.reload import Configuration, changed
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.settings import Mode, PolicySettings


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


def test_changes_are_named_as_in_the_file() -> None:
    plain, heavy = VmSettings(), VmSettings(weight=200)
    before = PolicySettings(vms={"web1": plain, "web2": plain, "web3": heavy})
    after = PolicySettings(reserve=0.1, cgroup=str(Path("/")), vms={"web1": heavy, "web4": plain})
    assert list(changed(before, after)) == ["policy.reserve", "policy.cgroup", "vm.web1", "vm.web3"]
    assert list(changed(after, after)) == []
    # web2 has the defaults before and after.
    other = PolicySettings(defaults=heavy, vms={"web1": plain})
    assert list(changed(PolicySettings(vms={"web1": plain}), other)) == ["defaults"]
