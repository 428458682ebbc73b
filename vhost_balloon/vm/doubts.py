"""Settings that are valid but can only be a mistake, most often of the unit.

They are warned of and applied: a VM that waits at a restart must not be lost to them.
"""

from __future__ import annotations

from typing import Final

from vhost_balloon.setting_kinds import SIZE
from vhost_balloon.sizes import format_size, implausible
from vhost_balloon.vm.settings import SETTINGS, VmSettings

SLOWEST_RATE: Final = 1 << 20
"""Bytes a second. A guest's report has at least 2 MiB."""

LONGEST_INTERVAL: Final = 3600.0
"""Seconds."""


def doubts(settings: VmSettings) -> list[str]:
    """One line for each such setting."""
    found = []
    for key, setting in SETTINGS.items():
        value = setting.get(settings)
        if setting.kind is SIZE and value is not None and (text := implausible(str(value), value)):
            found.append(f"'{key}': {text}")
    rate, interval = settings.report_rate, settings.stats_interval
    if rate is not None and rate < SLOWEST_RATE:
        found.append(
            f"'report-rate': {format_size(rate)} a second is less than one report in two seconds; "
            f"the unit is bytes a second, as in 512M/s"
        )
    if interval > LONGEST_INTERVAL:
        found.append(
            f"'stats-interval': {interval:g} s are {interval / 3600:.1f} hours; the unit is seconds"
        )
    return found
