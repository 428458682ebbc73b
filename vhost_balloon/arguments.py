"""The command line, kept for the process after this one.

Whoever edits the options of a service that has VMs may make a mistake. Their guests wait, so the
next process goes on with the options of the one before, and says what is wrong with the new ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence

from vhost_balloon.errors import FrontEndError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log import logger
from vhost_balloon.store import ARGUMENTS_PREFIX, Scope, Store

_LIMIT = 1 << 20
"""Bytes: some thousand sockets."""


def left_arguments(stored: Iterable[tuple[str, OwnedFd]]) -> list[str] | None:
    """The command line of the process before this one, None if it is not known."""
    for name, fd in stored:
        if name.startswith(ARGUMENTS_PREFIX):
            try:
                found = json.loads(os.pread(fd.fileno(), _LIMIT, 0))
            except (OSError, ValueError):
                continue
            if isinstance(found, list) and all(isinstance(word, str) for word in found):
                return found
    return None


async def keep_arguments(store: Store, arguments: Sequence[str]) -> None:
    """Have the next process know this command line, if anything outlives this one."""
    if not store.active:
        return
    scope, text = Scope(store), json.dumps(arguments).encode()
    names = [name for name in store.left() if name.startswith(ARGUMENTS_PREFIX)]
    try:
        if names:
            fd = scope.adopt(names[0])
        else:
            made = OwnedFd(os.memfd_create("vhost-balloon arguments", os.MFD_CLOEXEC))
            fd = await scope.keep(made, ARGUMENTS_PREFIX)
        # Whoever dies in between leaves no JSON, and the next process does without.
        os.pwrite(fd.fileno(), text, 0)
        os.ftruncate(fd.fileno(), len(text))
    except (OSError, FrontEndError) as error:
        logger.warning("a mistake in the options would not survive a restart: %s", error)
    else:
        store.arguments = fd
