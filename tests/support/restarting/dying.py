"""Runs in the daemon's place under systemd, and dies at the step that a test names.

A test writes a line to ORDER: a step of STEPS, "before" or "after", the number of the call, and
"kill" (SIGKILL) or "raise" (an unhandled exception). The file is removed when the order is carried
out. Copied into the test system by restarting.under_systemd, so it imports nothing from tests.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from vhost_balloon import fds
from vhost_balloon.__main__ import main
from vhost_balloon.front_end import keeper, transport
from vhost_balloon.queues import discarding
from vhost_balloon.queues import virtqueue as queues
from vhost_balloon.restart import revival
from vhost_balloon.service import systemd
from vhost_balloon.store import journal, shelf

FOLDER: Final = Path("/run/dying")
ORDER: Final = FOLDER / "order"
INJECTED: Final = "injected by a test"

REQUEST_STEPS: Final[dict[str, tuple[Any, str]]] = {
    "put": (shelf.Shelf, "put"),
    "begin": (journal.Journal, "begin"),
    "consume": (transport.Transport, "_take"),
    "taken": (journal.Journal, "taken"),
    "save": (keeper.Keeper, "_save_connection"),
    "finish": (keeper.Keeper, "finish"),
    "done": (journal.Journal, "done"),
    "sending": (journal.Journal, "sending"),
    "splice": (os, "splice"),
    "sent": (journal.Journal, "sent"),
}
"""The steps of a front end's message, in order.

No secondary service may take them, because its failure ends that service instead of the daemon; so
"save" is not every write of the record.
"""

STATE_STEPS: Final = ("put", "save")
"""Those that only some messages reach: QEMU sends them while it stops and starts the device."""

GUEST_STEPS: Final[dict[str, tuple[Any, str]]] = {
    "punch": (discarding, "punch"),
    "push": (queues.Virtqueue, "push"),
    "publish": (queues.Virtqueue, "publish"),
    "signal": (fds.EventFd, "signal"),
}
"""The steps of a request in a ring."""

START_STEPS: Final[dict[str, tuple[Any, str]]] = {
    "load": (shelf.Shelf, "load"),
    "notify": (systemd.Notifier, "send"),
}
"""The steps of a start that reattaches a front end."""

STEPS: Final = {**REQUEST_STEPS, **GUEST_STEPS, **START_STEPS}

_reached: Counter[str] = Counter()


def reach(step: str, when: str) -> None:
    """End here if ordered to."""
    try:
        order = ORDER.read_text()
    except FileNotFoundError:
        return
    wanted, wanted_when, count, how = order.split()
    if (step, when) != (wanted, wanted_when):
        return
    _reached[order] += 1
    if _reached[order] < int(count):
        return
    ORDER.unlink()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError(f"{INJECTED} {when} {step}")


def wrapped(
    step: str, function: Callable[..., Any], reach: Callable[[str, str], None]
) -> Callable[..., Any]:
    """Wrap a function to call reach(step, "before") and reach(step, "after") around it."""

    @functools.wraps(function)
    async def wait(*args: Any, **kwargs: Any) -> Any:
        reach(step, "before")
        result = await function(*args, **kwargs)
        reach(step, "after")
        return result

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        reach(step, "before")
        result = function(*args, **kwargs)
        reach(step, "after")
        return result

    return wait if inspect.iscoroutinefunction(function) else call


if __name__ == "__main__":
    for name, (owner, attribute) in STEPS.items():
        setattr(owner, attribute, wrapped(name, getattr(owner, attribute), reach))
    # Repeated crashes normally give up the front end; here they are not its fault.
    if "MANY_CRASHES" in os.environ:
        revival.MAX_CRASHES = 1000  # type: ignore[misc]
    main()
