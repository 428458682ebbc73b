"""The sentences that explain the policy: each reason, on a host that is short, well or better."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.figures.policy_reason import ORDERS, Reason
from vhost_balloon.figures.refusal import PAUSE_REASONS
from vhost_balloon.policy.decide import Decision, HostState, judge
from vhost_balloon.policy.explain.host import explain_host
from vhost_balloon.policy.explain.vm import explain
from vhost_balloon.policy.inputs import HostFigures, Sample, VmFigures, VmSettings
from vhost_balloon.policy.report import Report, VmReport, describe
from vhost_balloon.policy.settings import Mode

MIB, GIB = 1 << 20, 1 << 30
RESERVE = 2 * GIB
SHORT, WELL, PLENTY = (
    replace(judge(HostFigures(available, 16 * GIB), RESERVE), spare=3 * GIB)
    for available in (GIB, 3 * GIB, 8 * GIB)
)
SAMPLE = Sample(0.0, 4 * GIB, 50 * MIB)
WHOLE = VmFigures("qemu", 4 * GIB, 4 * GIB, 4 * GIB, 3 * GIB, SAMPLE)
SQUEEZED = replace(WHOLE, actual=2 * GIB, target=2 * GIB, resident=2 * GIB)


def told(
    reason: Reason,
    host: HostState = SHORT,
    mode: Mode = Mode.ON,
    vm: VmFigures = WHOLE,
    held_for: float | None = None,
    **members: object,
) -> str:
    figures = {
        "target": 2 * GIB if reason in ORDERS else None, "demand": GIB, "peak": 2 * GIB,
        "slack": GIB, "keep": 2 * GIB, "spare": GIB, "age": 1.0,
    }  # fmt: skip
    decision = Decision(reason, **(figures | members))  # type: ignore[arg-type]
    return explain("web1", vm, decision, host, mode, held_for)


@pytest.mark.parametrize(
    ("reason", "host", "vm", "text"),
    [
        (Reason.RECLAIM, SHORT, WHOLE,
         "web1 was asked to shrink from 4 GiB to 2 GiB, because the host has 1 GiB available, less "
         "than its reserve of 2 GiB. Its guest uses 1 GiB and may keep 1 GiB on top (k = 0.50). "
         "Of the 3 GiB that it occupies on the host, it gives 1 GiB."),
        (Reason.RELIEF, SHORT, replace(SQUEEZED, actual=GIB, target=GIB),
         "web1 was raised from 1 GiB to 2 GiB, because it needs more. Its guest has only 50 MiB "
         "available. The host is short, so it gets its slack of 1 GiB on top of what it has."),
        (Reason.RELIEF, WELL, replace(SQUEEZED, target=GIB, sample=None, settings=VmSettings(
            ceiling=2 * GIB)),
         "web1 was raised from 1 GiB to 2 GiB, because it needs more. At its last statistics its "
         "guest had little available, had taken memory back by itself, or read again what it had "
         "to drop. This is its ceiling."),
        (Reason.REGROW, PLENTY, replace(SQUEEZED, target=GIB),
         "web1 was raised from 1 GiB to 2 GiB, because the host has 8 GiB available, more than "
         "twice its reserve of 2 GiB. More follows in steps, up to its ceiling of 4 GiB."),
        (Reason.REGROW, WELL, replace(SQUEEZED, target=GIB),
         "web1 was raised from 1 GiB to 2 GiB, because the host has 3 GiB available, more than "
         "its reserve of 2 GiB. More follows in steps, up to its ceiling of 4 GiB."),
        (Reason.STUCK, SHORT, replace(SQUEEZED, target=GIB),
         "web1 was set back from 1 GiB to 2 GiB, because its guest came no closer to 1 GiB for "
         "10 s. It is not asked for memory for 5 min. `vhost-balloonctl status web1` shows the "
         "guest's state. If this happens again, raise its floor."),
        (Reason.OFF, WELL, WHOLE,
         "web1 is left alone: the hub's configuration turns the policy off for it. "
         "Set `policy = \"on\"` in its section [vm.'web1'], and reload the hub."),
        (Reason.MANUAL, WELL, WHOLE,
         "web1 is left alone: an operator set its target or put it on hold. The hold ends with "
         "`vhost-balloonctl policy-release web1`."),
        (Reason.NO_DRIVER, WELL, WHOLE,
         "web1 is left alone: no balloon driver is ready in its guest. Its QEMU does not run, "
         "or its guest has not booted yet or lacks the driver (virtio_balloon in Linux)."),
        (Reason.INERT, WELL, WHOLE,
         "web1 is left alone: its daemon lost the record of the running VM. Shut the guest down "
         "and start its QEMU again."),
        (Reason.NO_STATISTICS, WELL, WHOLE,
         "web1 is left alone: its guest has not said how much memory it has available. "
         "`vhost-balloonctl stats web1` asks it; its balloon driver must send statistics."),
        (Reason.STALE, WELL, WHOLE,
         "web1 is left alone: its guest has sent no statistics since the policy was started."),
        (Reason.DISTRESS, SHORT, WHOLE,
         "web1 is left alone: its guest is short of memory. Its guest has only 50 MiB available. "
         "It has all that it may have, 4 GiB: only a larger VM helps."),
        (Reason.DISTRESS, SHORT, replace(WHOLE, settings=VmSettings(ceiling=3 * GIB)),
         "web1 is left alone: its guest is short of memory. Its guest has only 50 MiB available. "
         "It has all that it may have, 4 GiB: only a higher ceiling helps."),
        (Reason.DISTRESS, SHORT, SQUEEZED,
         "web1 is left alone: its guest is short of memory. Its guest has only 50 MiB available. "
         "It is considered again at its next statistics."),
        (Reason.MOVING, SHORT, replace(SQUEEZED, actual=3 * GIB),
         "web1 is left alone: its guest is on its way from 3 GiB to 2 GiB."),
        (Reason.MOVING, WELL, replace(
            SQUEEZED, actual=3 * GIB, settings=VmSettings(ceiling=2 * GIB)),
         "web1 is left alone: its guest is on its way from 3 GiB to 2 GiB. If it never gets there, "
         "`vhost-balloonctl status web1` shows its state."),
        (Reason.REGROW, PLENTY, replace(SQUEEZED, target=GIB, settings=VmSettings(ceiling=2 * GIB)),
         "web1 was raised from 1 GiB to 2 GiB, because the host has 8 GiB available, more than "
         "twice its reserve of 2 GiB. This is its ceiling."),
        (Reason.HELD, SHORT, SQUEEZED,
         "web1 is left alone: its guest did not reach a target lately, or its daemon did not carry "
         "out an order, so it is not asked for memory for up to 5 min (web1 still gets more if it "
         "needs it). If this happens again, raise its floor, or see its daemon's log."),
        (Reason.NOTHING_TO_SPARE, SHORT, WHOLE,
         "web1 is left alone: it has nothing to spare. Its guest uses 1 GiB and may keep 1 GiB on "
         "top (k = 0.50). It occupies 3 GiB on the host."),
        (Reason.NOT_NEEDED, WELL, SQUEEZED,
         "web1 is left alone: the host has 3 GiB available, no less than its reserve of 2 GiB. It "
         "could spare 1 GiB. It gets more, up to its ceiling of 4 GiB, as soon as it needs it, or "
         "once the host has more than 4 GiB available."),
        (Reason.TOO_SMALL, SHORT, WHOLE,
         "web1 is left alone: its share of what the host lacks is below 16 MiB. It could spare "
         "1 GiB."),
        (Reason.TOO_SMALL, PLENTY, SQUEEZED,
         "web1 is left alone: its share of what the host can give back is below 16 MiB. Those "
         "that lack most come first. It gets more as soon as it needs it."),
    ],
)  # fmt: skip
def test_reasons(reason: Reason, host: HostState, vm: VmFigures, text: str) -> None:
    assert told(reason, host, vm=vm) == text


def test_a_silent_vm() -> None:
    assert told(Reason.SILENT, vm=replace(SQUEEZED, target=GIB), age=12.4) == (
        "web1 was raised from 1 GiB to 2 GiB, because it is below its ceiling and its guest has "
        "sent no statistics for 12 s. A guest that is short of memory often does not answer. It "
        "used up to 2 GiB lately. Slack comes on top, more the longer it is silent."
    )
    assert told(Reason.SILENT, vm=replace(SQUEEZED, target=GIB), age=None) == (
        "web1 was raised from 1 GiB to 2 GiB, because it is below its ceiling and its guest has "
        "sent no statistics. This is its ceiling."
    )


def test_statistics_that_are_too_old() -> None:
    text = told(Reason.STALE, age=200.0)
    assert text == (
        "web1 is left alone: its guest's last statistics are 3 min old. While the host is short, "
        "it is asked again every 2 s. If this lasts, `vhost-balloonctl stats web1` shows whether "
        "it answers."
    )
    assert "since the policy was started" in told(Reason.STALE, age=20.0)
    assert "are 20 s old" in told(Reason.STALE, age=20.0, vm=SQUEEZED)


def test_an_order_that_failed() -> None:
    assert told(Reason.RECLAIM, detail="its daemon is older than the policy: upgrade it") == (
        "web1 was to be moved from 4 GiB to 2 GiB, which failed: its daemon is older than the "
        "policy: upgrade it. It is not asked for memory for 5 min. It still gets more if it needs "
        "it. Its daemon's log may say more."
    )


def test_a_hold_with_an_end() -> None:
    assert told(Reason.MANUAL, held_for=41.7) == (
        "web1 is left alone: an operator set its target or put it on hold. The hold ends in 42 s, "
        "or with `vhost-balloonctl policy-release web1`."
    )


def test_a_vm_at_its_floor() -> None:
    floor = replace(WHOLE, settings=VmSettings(floor=2 * GIB))
    assert "Its guest uses 1 GiB; it keeps its floor, 2 GiB." in told(Reason.RECLAIM, vm=floor)


@pytest.mark.parametrize("detail", [*PAUSE_REASONS, "something-new"])
def test_memory_that_is_not_discarded(detail: str) -> None:
    """Each reason says what can be done."""
    text = told(Reason.PINNED, detail=detail)
    start = "web1 is left alone: nothing would come back to the host, because "
    assert text.startswith(start)
    assert text.count(". ") == 1
    assert "{" not in text
    assert len({told(Reason.PINNED, detail=other) for other in PAUSE_REASONS}) == len(PAUSE_REASONS)


@pytest.mark.parametrize("reason", Reason)
def test_a_dry_run_says_what_would_be_done(reason: Reason) -> None:
    on, dry_run = told(reason), told(reason, mode=Mode.DRY_RUN)
    was, would = (" was ", " would be ") if reason in ORDERS else (" is ", " would be ")
    assert dry_run == on.replace(was, would, 1) != on


def test_names_are_printable_and_quoted_for_the_shell() -> None:
    for name, shown, operand in (
        ("web 1", "web 1", "'web 1'"), ("-x", "-x", "-- -x"),
        ("a\x1b[2J", "a\\x1b[2J", "'a\\x1b[2J'"),
    ):  # fmt: skip
        text = explain(name, WHOLE, Decision(Reason.MANUAL), WELL, Mode.ON)
        assert text.startswith(f"{shown} is left alone")
        assert f"policy-release {operand}`" in text


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (None,
         "The policy decides nothing at present. The notes say why; without a note, it has just "
         "started."),
        (SHORT,
         "The host has 1 GiB of 16 GiB available, less than its reserve of 2 GiB. Beyond what its "
         "guest uses, each VM may keep 50% of what it would like (k = 0.50). 1 GiB are "
         "missing, and VMs can spare 3 GiB."),
        (replace(SHORT, spare=0),
         "The host has 1 GiB of 16 GiB available, less than its reserve of 2 GiB. Beyond what its "
         "guest uses, each VM may keep 50% of what it would like (k = 0.50). 1 GiB are "
         "missing, and no VM can be asked for more at present. The VMs' reasons say why. If "
         "this lasts, shut a VM down, or lower the reserve or the VMs' floors."),
        (WELL,
         "The host has 3 GiB of 16 GiB available, between its reserve of 2 GiB and twice as much. "
         "Nothing is taken or given back, except to a VM that needs more."),
        (PLENTY,
         "The host has 8 GiB of 16 GiB available, more than twice its reserve of 2 GiB. VMs below "
         "their ceilings get memory back in small steps."),
    ],
)  # fmt: skip
def test_hosts(host: HostState | None, text: str) -> None:
    assert explain_host(host, Mode.ON) == text
    if host is not None:
        assert explain_host(host, Mode.DRY_RUN).startswith(f"{text} This is a dry run: ")


def test_a_host_under_pressure() -> None:
    host = judge(HostFigures(3 * GIB, 16 * GIB, some=0.25), RESERVE)
    assert explain_host(host, Mode.ON).startswith(
        "The host has 1.5 GiB of 16 GiB available, less than its reserve of 2 GiB. Tasks waited "
        "for memory in 25% of the time, so no more than this counts as available. "
    )


def test_a_host_that_cannot_be_read_and_a_policy_that_is_off() -> None:
    unreadable = explain_host(SHORT, Mode.ON, readable=False)
    assert unreadable == (
        "The host's memory cannot be read, so no VM is moved, not even one that needs more. The "
        "figures and reasons are those of the last decision."
    )
    off = explain_host(None, Mode.OFF)
    assert off.startswith("The policy is off and moves no VM. `vhost-balloonctl policy-mode ")
    assert explain("web1", WHOLE, Decision(Reason.OFF), None, Mode.ON) == explain_host(
        None, Mode.ON
    )


SIZES = st.integers(0, 1 << 63)


@pytest.mark.parametrize(
    ("mode", "state"), [(Mode.OFF, "is off"), (Mode.DRY_RUN, "makes a dry run")]
)
def test_an_order_to_give_everything_back_is_real_in_any_mode(mode: Mode, state: str) -> None:
    text = (
        "The host has 3 GiB of 16 GiB available, between its reserve of 2 GiB and twice as much. "
        "Memory goes back to all VMs by order (`vhost-balloonctl policy-release --all`), while the "
        "host has more than its reserve."
    )
    assert explain_host(WELL, Mode.ON, releasing=True) == text
    said = explain_host(WELL, mode, releasing=True)
    assert said == f"{text} Nothing else is ordered: the policy {state}."
    assert "3 GiB" in explain_host(SHORT, Mode.ON, releasing=True)
    assert "cannot be read" in explain_host(WELL, mode, releasing=True, readable=False)
    raised = Decision(Reason.REGROW, 3 * GIB, age=1.0)
    vms = {
        "web1": VmReport(SQUEEZED, raised),
        "web2": VmReport(WHOLE, Decision(Reason.OFF)),
        "web3": VmReport(SQUEEZED, Decision(Reason.NOT_NEEDED, age=1.0)),
    }
    for releasing in (True, False):
        document: Any = describe(Report(mode, host=PLENTY, vms=vms, releasing=releasing))
        web1, web2, web3 = document["vms"]
        assert (
            web3["explanation"].startswith(f"web3 is left alone: the policy {state}.") is releasing
        )
        assert ("web1 was raised" in web1["explanation"]) is releasing
        assert "was" not in web2["explanation"]


@given(
    st.sampled_from(Reason), st.integers(-(1 << 63), 1 << 63), SIZES, SIZES, SIZES,
    st.none() | st.floats(0, 1e9), st.sampled_from(Mode), st.floats(0, 1),
)  # fmt: skip
def test_any_figures_are_explained_in_one_printable_line(
    reason: Reason, available: int, actual: int, target: int, resident: int, age: float | None,
    mode: Mode, some: float,
) -> None:  # fmt: skip
    host = judge(HostFigures(available, 1 << 63, some), RESERVE)
    vm = VmFigures("qemu", 1 << 40, actual, target, resident)
    text = explain("web1", vm, Decision(reason, target=actual, age=age), host, mode, age)
    whole = f"{explain_host(host, mode)} {text}"
    assert whole.isprintable()
    assert "-" not in whole.replace("vhost-balloon", "").replace("policy-", "").replace("dry-", "")
    assert whole.endswith(".")
