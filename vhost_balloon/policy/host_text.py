"""Parses what the kernel says of the host's memory. Pure.

A value counts only on a complete line, because a read may be cut. Longer numbers than the kernel's
are no numbers.
"""

from __future__ import annotations

import re
from typing import Final

from vhost_balloon.policy.interfaces import HostUnreadable

ARC_GIVEN_BACK: Final = 0.9
"""The part of ZFS's cache above its minimum that it gives back when memory is short; the rest is
left for what cannot be evicted."""


def meminfo(data: bytes) -> tuple[int, int]:
    """MemTotal and MemAvailable in bytes, the latter at most the former. Raises HostUnreadable."""
    values = {}
    for name in ("MemTotal", "MemAvailable"):
        found = re.search(rb"^%b:[ \t]+([0-9]{1,15}) kB\n" % name.encode(), data, re.MULTILINE)
        if found is None:
            raise HostUnreadable(f"meminfo does not say {name}")
        values[name] = int(found[1]) * 1024
    if values["MemTotal"] == 0:
        raise HostUnreadable("meminfo says that there is no memory")
    return values["MemTotal"], min(values["MemAvailable"], values["MemTotal"])


def stalled(data: bytes) -> int | None:
    """Microseconds in which some task waited for memory, since boot; None if it does not say.

    data: /proc/pressure/memory, or memory.pressure of a cgroup (Documentation/accounting/psi.rst).
    """
    found = re.search(rb"^some [^\n]*\btotal=([0-9]{1,19})\n", data, re.MULTILINE)
    return None if found is None else int(found[1])


def arc_given_back(data: bytes) -> int:
    """Bytes of ZFS's cache that count as available; 0 if arcstats does not say."""
    size, least = (_arc_value(data, name) for name in (b"size", b"c_min"))
    if size is None or least is None:
        return 0
    return max(int(ARC_GIVEN_BACK * (size - least)), 0)


def _arc_value(data: bytes, name: bytes) -> int | None:
    """A row of arcstats: name, type, value."""
    found = re.search(rb"^%b +[0-9]+ +([0-9]{1,19})\n" % name, data, re.MULTILINE)
    return None if found is None else int(found[1])


def stat_value(data: bytes, name: str) -> int:
    """A row of a cgroup's memory.stat: name, value. Raises HostUnreadable."""
    found = re.search(rb"^%b ([0-9]{1,19})\n" % name.encode(), data, re.MULTILINE)
    if found is None:
        raise HostUnreadable(f"memory.stat does not say {name}")
    return int(found[1])


def amount(data: bytes, name: str) -> int:
    """The one number of the file called name. Raises HostUnreadable."""
    found = re.fullmatch(rb"([0-9]{1,19})\n", data)
    if found is None:
        raise HostUnreadable(f"{name} does not hold a number")
    return int(found[1])
