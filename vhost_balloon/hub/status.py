"""The policy's state in a few words, for `systemctl status`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vhost_balloon.policy.report import Report
from vhost_balloon.policy.settings import Mode
from vhost_balloon.sizes import format_size


def summary(folders: Sequence[Path], report: Report) -> str:
    """One line. It holds no figure that changes all the time, so it is rarely sent."""
    vms = f"VMs of {', '.join(map(str, folders))}"
    if report.mode is Mode.OFF:
        return vms
    return f"{vms}; policy {report.mode.value}: {_state(report)}"


def _state(report: Report) -> str:
    if report.host is None or not report.readable:
        return report.problems[0] if report.problems else "starting"
    reserve = format_size(report.host.reserve)
    if report.host.short:
        return f"the host is short, with less than its reserve of {reserve} available"
    return f"the host has its reserve of {reserve} available"
