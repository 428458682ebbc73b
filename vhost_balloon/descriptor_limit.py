"""How many descriptors this process may have."""

from __future__ import annotations

import resource
from pathlib import Path

from vhost_balloon.log import logger


def raise_descriptor_limit() -> None:
    """Have as many descriptors as the hard limit allows; the usual soft limit is 1024.

    A limit that was inherited may be above what the kernel lets anybody set (fs.nr_open).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, _kernel_limit()):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (OSError, ValueError) as error:  # EPERM is a ValueError
            reason = error
        else:
            return
    logger.warning("the limit of descriptors stays as it is: %s", reason)


def _kernel_limit() -> int:
    try:
        return int(Path("/proc/sys/fs/nr_open").read_text())
    except (OSError, ValueError):
        return 1 << 20  # its default
