"""The vhost-balloon command: reads the options and runs one VM's daemon."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from vhost_balloon import deferred  # noqa: F401 - before trio is imported

# isort: split

import trio

from vhost_balloon.config import config
from vhost_balloon.daemon import daemon
from vhost_balloon.daemon.front_ends import DESCRIPTORS
from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import raise_descriptor_limit, spare_descriptors
from vhost_balloon.log import setup as log_setup
from vhost_balloon.log.lines import logger, shortened
from vhost_balloon.log.output import prepare_descriptors
from vhost_balloon.printable import printable
from vhost_balloon.restart.records import LeftOptions, holds_front_end, left_options
from vhost_balloon.service.handed_over import RESERVED_NAMES, paths
from vhost_balloon.vm.names import looks_escaped


def check_platform() -> None:
    """Raises OperatorError on platforms whose memory order or system calls are not supported."""
    system = os.uname()
    if (system.sysname, system.machine) != ("Linux", "x86_64"):
        raise OperatorError(
            f"{system.sysname} on {system.machine} is not supported; Linux on x86_64 is required"
        )


def wait_for_descriptors() -> None:
    """Wait until there are enough descriptors for the VM that was left. Waiting costs the VM
    nothing; without descriptors it would lose its device."""
    said = False
    while True:
        try:
            with spare_descriptors(DESCRIPTORS):
                return
        except OSError as error:
            if not said:
                logger.error(
                    "the VM has to wait: %s: raise LimitNOFILE= (prlimit --nofile)", error.strerror
                )
            said = True
        time.sleep(RETRY_PAUSE)


ONLY_PRINTS: Final = "one of them only prints something"

RETRY_PAUSE: Final = 1.0
"""Seconds between two checks whether there are enough descriptors."""


def read_settings(handed: daemon.Handed) -> config.Config:
    """The configuration.

    A VM whose front end was left keeps its name until that front end has gone and the daemon starts
    again: figures and orders of one QEMU's life stay under one name. Raises OperatorError. If a VM
    was left and its previous options are known, a mistake is logged and those options are used.
    """
    before = left_options(handed.stored)
    settings = _read_options(before, paths(handed.sockets))
    log_setup.set_up(settings.log_level, settings.log_format)
    name = before.name if before is not None and holds_front_end(handed.stored) else None
    if name is not None and name != settings.name:
        logger.warning(
            "the VM keeps the name '%s' while its front end is attached: '%s' applies after the "
            "next start without one", name, settings.name,
        )  # fmt: skip
        settings = replace(settings, name=name)
    if looks_escaped(settings.name):
        logger.warning(
            "the VM's name '%s' looks like the output of systemd-escape: names need no escapes, "
            "and this one is kept as it is", settings.name,
        )  # fmt: skip
    return settings


def _read_options(before: LeftOptions | None, sockets: Mapping[str, Path | None]) -> config.Config:
    """Raises OperatorError."""
    try:
        settings = config.parse(sys.argv[1:], sockets)
        if before is None or not settings.check_only:
            return settings
        mistake = ONLY_PRINTS
    except SystemExit:  # --version, --help and the like
        if before is None:
            raise
        mistake = ONLY_PRINTS
    except OperatorError as error:
        if before is None:
            raise
        mistake = str(error)
    settings = _previous(before, sockets)
    log_setup.set_up(settings.log_level, settings.log_format)
    logger.error("these options are not used; the previous ones stay in force: %s", mistake)
    return settings


def _previous(before: LeftOptions, sockets: Mapping[str, Path | None]) -> config.Config:
    """The previous options. Files are not read again: they may contain the mistake.

    It may be in the sockets that were handed over as well; then only the VM's own is used. Raises
    OperatorError.
    """
    words, path = before.arguments, before.socket_path
    try:
        return config.parse(words, sockets, settings=before.settings)
    except OperatorError:
        if path is None:
            raise
    kept = {name: at for name, at in sockets.items() if name in RESERVED_NAMES or str(at) == path}
    is_handed_over = path in map(str, kept.values())
    if not is_handed_over and not any(word.startswith("--socket-path") for word in words):
        words = [*words, f"--socket-path={path}"]
    return config.parse(words, kept, settings=before.settings)


def main() -> None:
    """Exits with 0 after SIGTERM, 1 after a bug, 2 after an operator's mistake."""
    prepare_descriptors()
    handler = log_setup.set_up()
    log_setup.catch_all(handler)
    try:
        check_platform()
        handed = daemon.handed_over()
        settings = read_settings(handed)
        raise_descriptor_limit()
        if settings.check_only:
            from vhost_balloon.daemon.check_config import check_config

            return trio.run(check_config, settings)
        if handed.is_restart:
            wait_for_descriptors()
        gc.freeze()  # else a full collection traverses all imported modules, for some 10 ms
        trio.run(daemon.run, settings, handed)
    except OperatorError as error:
        handler.write_error(f"vhost-balloon: {printable(shortened(str(error)))}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
