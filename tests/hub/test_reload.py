"""Reading the hub's configuration files again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhost_balloon.errors import OperatorError
from vhost_balloon.hub.reload import Configuration, changed
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.settings import Mode, PolicySettings


async def test_settings_are_read_again_and_applied() -> None:
    applied: list[PolicySettings] = []
    first, second = PolicySettings(), PolicySettings(Mode.ON, zfs_arc=True)
    left = [second, second]
    configuration = Configuration(first, left.pop, applied.append)
    assert await configuration.reload() == ["policy.mode", "policy.zfs-arc"]
    assert await configuration.reload() == []
    assert applied == [second, second]


async def test_a_mistake_changes_nothing() -> None:
    applied: list[PolicySettings] = []
    mistakes = [OperatorError("line 3")]

    def read() -> PolicySettings:
        if mistakes:
            raise mistakes.pop()
        return PolicySettings(Mode.ON)

    configuration = Configuration(PolicySettings(), read, applied.append)
    with pytest.raises(OperatorError, match="line 3"):
        await configuration.reload()
    assert applied == []
    assert await configuration.reload() == ["policy.mode"]


async def test_without_files_there_is_nothing_to_read() -> None:
    with pytest.raises(OperatorError, match="without --config"):
        await Configuration(PolicySettings(), None, lambda settings: None).reload()


def test_changes_are_named_as_in_the_file() -> None:
    plain, heavy = VmSettings(), VmSettings(weight=200)
    before = PolicySettings(vms={"web1": plain, "web2": plain, "web3": heavy})
    after = PolicySettings(reserve=0.1, cgroup=str(Path("/")), vms={"web1": heavy, "web4": plain})
    assert list(changed(before, after)) == ["policy.reserve", "policy.cgroup", "vm.web1", "vm.web3"]
    assert list(changed(after, after)) == []
    # web2 has the defaults before and after.
    other = PolicySettings(defaults=heavy, vms={"web1": plain})
    assert list(changed(PolicySettings(vms={"web1": plain}), other)) == ["defaults"]
