"""The vhost-balloon command."""

from __future__ import annotations

import faulthandler
import gc
import platform
import resource
import sys
from typing import Final

import trio

from vhost_balloon import config, daemon, log
from vhost_balloon.errors import OperatorError
from vhost_balloon.handed_over import paths


def check_platform() -> None:
    """Raises OperatorError where the ring rules (virtqueue) or system calls would not hold."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise OperatorError(
            f"{platform.system()} on {platform.machine()} is not supported: Linux on x86_64 is"
        )


def raise_descriptor_limit() -> None:
    """An attached VM needs some twenty descriptors; the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


SWITCH_INTERVAL: Final = 0.0003
"""Seconds after which a thread that discards gets the interpreter between two system calls. With
Python's default of 5 ms a report in many pieces takes several times as long while others work."""


def main() -> None:
    """Exits with 0 after SIGTERM, 2 after an operator's mistake."""
    faulthandler.enable()
    try:
        check_platform()
        handed = daemon.handed_over()
        settings = config.parse(sys.argv[1:], paths(handed.sockets), is_restart=bool(handed.stored))
        log.set_up(settings.log_level, settings.log_format)
        raise_descriptor_limit()
        sys.setswitchinterval(SWITCH_INTERVAL)
        gc.freeze()  # a full collection would look at all that was imported, for some 10 ms
        trio.run(daemon.run, settings, handed)
    except OperatorError as error:
        line = " ".join(str(error).splitlines())  # a path may hold newlines
        print(f"vhost-balloon: {line}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
