"""The metrics of the policy: of the host, and of each VM."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.qmp import Object
from tests.support.fakes.policy_documents import GIB, POLICY_MODES, POLICY_OFF, POLICY_ON
from tests.support.scrapes import Samples, samples, snapshots
from vhost_balloon.figures.policy_info import PARTS, POLICY_INFO
from vhost_balloon.metrics.exposition import Exposition, Rows
from vhost_balloon.metrics.policy_families import PolicyCollector, with_policy
from vhost_balloon.vm.settings import VmSettings
from vhost_balloon.vm.vm import Vm

PREFIX = "vhost_balloon_policy_"


async def scraped(document: Any) -> Samples:
    """The policy's series on a host with web1, db1, a VM whose daemon answers no more to the
    policy, one that the policy does not know, and one that does not answer."""
    vms = {name: Vm(name, VmSettings()) for name in ("web1", "db1", "hung1", "new")}

    async def ask() -> Rows:
        return with_policy([*snapshots(vms), ("build", None)], document)

    rendered = Exposition(ask, [PolicyCollector(lambda: document, POLICY_MODES)])
    body, _ = await rendered.render("")
    found = samples(text_string_to_metric_families(body.decode()))
    return {key: value for key, value in found.items() if key[0].startswith(PREFIX)}


async def test_the_host_is_shown_as_the_policy_takes_it() -> None:
    found = await scraped(POLICY_ON)
    host = {
        name.removeprefix(PREFIX): value for (name, labels), value in found.items() if not labels
    }
    assert host == {
        "host_readable": 1,
        "host_available_bytes": GIB,
        "host_reserve_bytes": 2 * GIB,
        "host_pressure_ratio": 0.02,
        "room_ratio": 0.5,
        "short": 1,
        "host_spare_bytes": POLICY_ON["host"]["spare"],
    }
    modes = {
        dict(labels)["mode"]: value for (name, labels), value in found.items() if "mode" in name
    }
    assert modes == {"off": 0, "dry-run": 0, "on": 1}


async def test_a_host_that_cannot_be_read_has_no_old_figures() -> None:
    found = await scraped({**POLICY_ON, "host-readable": False})
    names = {name.removeprefix(PREFIX) for name, labels in found}
    assert names == {"mode", "host_readable"}, "nor have its VMs"


async def test_each_vm_has_its_numbers_and_one_reason() -> None:
    found = await scraped(POLICY_ON)
    for vm, reason in (("web1", "reclaim"), ("db1", "manual")):
        own = {
            (name.removeprefix(PREFIX), dict(labels).get("reason")): value
            for (name, labels), value in found.items()
            if ("vm", vm) in labels
        }
        (part,) = [part for part in POLICY_ON["vms"] if part["id"] == vm]
        for member in ("demand", "peak", "keep", "spare"):
            assert own[f"{member}_bytes", None] == part[member]
        assert {of for (name, of), value in own.items() if name == "reason" and value} == {reason}
        assert own["decisions_total", "reclaim"] == 3
        assert own["decisions_total", "stuck"] == 0
        assert own["reversals_total", None] == 1


async def test_a_vm_that_does_not_answer_the_policy_has_only_a_reason() -> None:
    found = await scraped(POLICY_ON)
    own = {key: value for key, value in found.items() if ("vm", "hung1") in key[1]}
    assert {name for name, _ in own} == {f"{PREFIX}reason"}
    assert [dict(labels)["reason"] for (_, labels), value in own.items() if value] == ["stale"]


async def test_vms_that_are_unknown_or_down_have_no_series() -> None:
    found = await scraped(POLICY_ON)
    vms = {dict(labels)["vm"] for _, labels in found if "vm" in dict(labels)}
    assert vms == {"web1", "db1", "hung1"}


async def test_while_the_policy_is_off_only_the_mode_is_shown() -> None:
    found = await scraped(POLICY_OFF)
    assert found == {
        (f"{PREFIX}mode", (("mode", mode),)): float(mode == "off") for mode in POLICY_MODES
    }


@pytest.mark.parametrize("document", [POLICY_ON, POLICY_OFF])
def test_the_document_has_the_members_of_its_schema(document: Object) -> None:
    def check(found: Any, members: Any) -> None:
        optional = {name[1:] for name in members if name.startswith("*")}
        required = {name for name in members if not name.startswith("*")}
        assert required <= found.keys() <= required | optional

    check(document, POLICY_INFO)
    whole: Any = document
    if "host" in whole:
        check(whole["host"], PARTS["PolicyHost"])
    for vm in whole["vms"]:
        check(vm, PARTS["PolicyVm"])
        if vm["id"] != "hung1":  # which has no figures
            names = {name.removeprefix("*") for name in PARTS["PolicyVm"]}
            assert vm.keys() >= names - {"order", "age", "held-for"}
            check(vm["decisions"], PARTS["PolicyDecisions"])
