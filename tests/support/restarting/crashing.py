"""The daemon, killed or failing at a chosen step.

    python -m tests.support.restarting.crashing OPTIONS

CRASH_AT=POINT:SIDE:COUNT kills it (SIGKILL) before or after the COUNTth call of a point, which is
a key of POINTS or "any". SIDE "bug" raises an exception before the call instead. STEPS_TO names a
file that receives every step, so that a test can list them. CRASH_FROM names a point; steps are
counted from its first call on. SPARE_PACKETS replaces the shelf's, STALL_PATIENCE the transport's.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any, Final

from tests.support.restarting.dying import wrapped
from vhost_balloon import __main__
from vhost_balloon.fds import EventFd
from vhost_balloon.front_end import making_way
from vhost_balloon.front_end.carrying_out import EffectExecutor
from vhost_balloon.front_end.channel import BackendChannel
from vhost_balloon.front_end.conversation import Conversation
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.queues import discarding
from vhost_balloon.queues.virtqueue import Virtqueue
from vhost_balloon.service.systemd import Notifier
from vhost_balloon.store import shelf
from vhost_balloon.store.descriptors import Store
from vhost_balloon.store.journal import Journal
from vhost_balloon.store.record import Record
from vhost_balloon.store.reply_pipe import ReplyPipe
from vhost_balloon.store.shelf import Shelf, _Pair

POINTS: Final[dict[str, tuple[Any, str]]] = {
    "journal.begin": (Journal, "begin"),
    "journal.taken": (Journal, "taken"),
    "journal.done": (Journal, "done"),
    "journal.sending": (Journal, "sending"),
    "journal.sent": (Journal, "sent"),
    "record.save": (Record, "save_json"),
    "store.keep": (Store, "keep"),
    "store.remove": (Store, "remove"),
    "shelf.put": (Shelf, "put"),
    "shelf.clear": (Shelf, "clear"),
    "shelf.compact": (Shelf, "_compact"),
    "pair.send": (_Pair, "send"),
    "pair.empty": (_Pair, "empty"),
    "pipe.send": (ReplyPipe, "send"),
    "transport.consume": (Transport, "_take"),
    "transport.reply": (Transport, "reply"),
    "transport.shut_down": (Transport, "shut_down"),
    "conversation.end": (Conversation, "end"),
    "handle": (EffectExecutor, "run"),
    "channel.send": (BackendChannel, "send"),
    "queue.publish": (Virtqueue, "publish"),
    "eventfd.signal": (EventFd, "signal"),
    "notifier.send": (Notifier, "_send"),
    "discard": (discarding, "punch"),
}


class Bug(Exception):
    """Any bug of the daemon."""


class Crash:
    """Counts steps and ends this process at the requested one."""

    def __init__(self, wanted: str, steps_to: str, start: str) -> None:
        self._point, self._side, count = (wanted or "::0").split(":")
        self._count = int(count)
        self._seen: Counter[tuple[str, str]] = Counter()
        self._start = start
        self._steps = os.open(steps_to, os.O_WRONLY | os.O_APPEND) if steps_to else None

    def step(self, point: str, side: str) -> None:
        if self._steps is not None:
            os.write(self._steps, f"{point}:{side}\n".encode())
        if point == self._start:
            self._start = ""
        if self._start:
            return
        wanted = "before" if self._side == "bug" else self._side
        if side != wanted or self._point not in (point, "any"):
            return
        self._seen[self._point, side] += 1
        if self._seen[self._point, side] == self._count:
            if self._side == "bug":
                raise Bug(point)
            os.kill(os.getpid(), signal.SIGKILL)

    def patch(self, point: str) -> None:
        owner, name = POINTS[point]
        setattr(owner, name, wrapped(point, getattr(owner, name), self.step))


if __name__ == "__main__":
    crash = Crash(*(os.environ.get(name, "") for name in ("CRASH_AT", "STEPS_TO", "CRASH_FROM")))
    for each in POINTS:
        crash.patch(each)
    if "SPARE_PACKETS" in os.environ:
        shelf.SPARE_PACKETS = int(os.environ["SPARE_PACKETS"])  # type: ignore[misc]
    if "STALL_PATIENCE" in os.environ:
        vars(making_way)["STALL_PATIENCE"] = float(os.environ["STALL_PATIENCE"])
    __main__.main()
