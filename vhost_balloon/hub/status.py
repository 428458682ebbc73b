"""The policy's state in a few words, for `systemctl status`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from vhost_balloon.policy.report import Report
from vhost_balloon.policy.runner import Policy
from vhost_balloon.policy.settings import Mode
from vhost_balloon.service.systemd import Notifier, status
from vhost_balloon.sizes import format_size


async def keep_status(
    folders: Sequence[Path], policy: Policy, notifier: Notifier, said: str
) -> None:
    """Keep the service manager's status line up to date. said: the line it has."""
    while notifier:
        await policy.changed.wait()
        policy.changed = trio.Event()
        text = summary(folders, policy.report())
        if text != said:
            await notifier.send(status(text))
            said = text


def summary(folders: Sequence[Path], report: Report) -> str:
    """One line. It holds no figure that changes all the time, so it is rarely sent."""
    vms = f"VMs of {', '.join(map(str, folders))}"
    if report.mode is Mode.OFF and not report.releasing:
        return vms
    return f"{vms}; policy {report.mode.value}: {_state(report)}"


def _state(report: Report) -> str:
    if report.host is None or not report.readable:
        return report.problems[0] if report.problems else "starting"
    reserve = format_size(report.host.reserve)
    if report.releasing:
        return f"memory goes back to all VMs by order while the host has more than {reserve}"
    if report.host.short:
        return f"the host is short, with less than its reserve of {reserve} available"
    return f"the host has its reserve of {reserve} available"
