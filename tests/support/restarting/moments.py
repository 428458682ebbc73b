"""Ending the daemon of a busy real guest at many moments, and the proof that nothing was lost.

VHOST_BALLOON_RESTARTS is the number of moments of each kind (8); VHOST_BALLOON_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

from tests.rig.inside import workload
from tests.support.restarting import under_systemd
from tests.support.restarting.under_systemd import Watched
from tests.support.vms.guests import corruption

MOMENTS = int(os.environ.get("VHOST_BALLOON_RESTARTS", "8"))
SEED = int(os.environ.get("VHOST_BALLOON_SEED", random.randrange(1 << 32)))


@contextmanager
def integrity(served: Watched) -> Iterator[None]:
    """Have the guest write, delete and verify files. Check at the end that no byte was lost, and
    that QEMU can still be stopped, continued and reset."""
    run = workload.Integrity(served.guest, 3600)
    first, logged = len(served.pauses), len(served.host.journal())
    yield
    report = run.finish(120)
    print(f"{report.written} files written, {report.verified} verified, {report.bad_bytes} bad")
    assert (report.bad_bytes, corruption(served.guest)) == (0, [])
    assert report.verified > 5
    log = served.host.journal()[logged:]
    assert [text for text in under_systemd.STRANGE if text in log] == []
    served.stop_and_cont()
    served.check()
    served.guest.reset()
    served.answers()
    served.check()
    pauses = served.pauses[first:]
    longest = max(pauses, default=(0.0, "none"))
    print(f"{len(pauses)} restarts survived; longest pause {longest[0]:.2f} s ({longest[1]})")


def finished(served: Watched, since: float, name: str) -> None:
    """Record the pause that began at `since`, and check that everything works again."""
    served.pauses.append((served.answers() - since, name))
    served.check()
