"""No policy: every VM keeps all its memory."""

from __future__ import annotations

from collections.abc import Sequence

from tests.policy.rule import HostView, Orders, VmView


class Nothing:
    """Orders nothing."""

    name = "none"
    period = 10

    def tick(self, now: int, host: HostView, vms: Sequence[VmView]) -> Orders:
        return {}, ()
