"""The package's alert rules and dashboard, as tests read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import vhost_balloon
from vhost_balloon.figures.statistics import VmState

_FOLDER: Final = Path(vhost_balloon.__file__).with_name("monitoring")

RULES: Final = _FOLDER / "alerts.yml"
RULES_TEXT: Final = RULES.read_text()
ALERTS: Final = re.findall(r"^ +- alert: (\w+)$", RULES_TEXT, re.MULTILINE)
DASHBOARD: Final[dict[str, Any]] = json.loads((_FOLDER / "dashboard.json").read_text())


def expressions() -> list[str]:
    """Return all PromQL of the dashboard."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def filled_in(expression: str, vm: str = "web1") -> str:
    """Replace the variables of an expression, as Grafana does."""
    for name, value in {"$__rate_interval": "1m", "$instance": ".*", "$vm": vm}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


# Series of alerts' tests

MIB: Final = 1 << 20

Series = dict[str, str]
"""Values in promtool's notation, one for every 15 s, by name and labels."""


def size(mib: int) -> str:
    return f"{mib * MIB}x200"


def costs(resident: int, actual: int, free: int) -> Series:
    """A guest of 1024 MiB."""
    return {
        "vhost_balloon_guest_resident_bytes": size(resident),
        "vhost_balloon_actual_bytes": size(actual),
        "vhost_balloon_guest_stat_free_bytes": size(free),
        "vhost_balloon_guest_memory_bytes": size(1024),
    }


def stale(interval: int, age: str, *, driver: bool = True) -> Series:
    return {
        "vhost_balloon_stats_interval_seconds": f"{interval}x200",
        "vhost_balloon_guest_stats_age_seconds": age,
        'vhost_balloon_state{state="no-driver"}': f"{int(not driver)}x200",
        'vhost_balloon_state{state="done"}': f"{int(driver)}x200",
    }


def state(name: str) -> Series:
    return {
        f'vhost_balloon_state{{state="{one.value}"}}': f"{int(one.value == name)}x200"
        for one in VmState
    }


def stuck(*, connected: bool) -> Series:
    return {**state("stuck"), "vhost_balloon_connected": f"{int(connected)}x200"}


def paused(reason: str) -> Series:
    return {f'vhost_balloon_reporting_pause_reason{{reason="{reason}"}}': "1x200"}


def refused(reason: str, values: str) -> Series:
    return {f'vhost_balloon_refused_ranges_total{{reason="{reason}"}}': values}


def ordered(reason: str, values: str) -> Series:
    return {f'vhost_balloon_policy_decisions_total{{reason="{reason}"}}': values}


def policed(*, available: int = 4096, spare: int = 0, readable: bool = True) -> Series:
    """A host with a reserve of 2048 MiB. readable: otherwise nothing is decided."""
    host = '{job="vhost-balloon",instance="host:9100"}'
    state = {f"vhost_balloon_policy_host_readable{host}": f"{int(readable)}x200"}
    if not readable:
        return state
    return state | {
        f"vhost_balloon_policy_host_available_bytes{host}": size(available),
        f"vhost_balloon_policy_host_reserve_bytes{host}": size(2048),
        f"vhost_balloon_policy_host_spare_bytes{host}": size(spare),
        f"vhost_balloon_policy_short{host}": f"{int(available < 2048)}x200",
    }
