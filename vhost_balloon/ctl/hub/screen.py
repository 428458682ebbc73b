"""The live screen of `policy --watch`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from vhost_balloon.ctl.hub import view
from vhost_balloon.ctl.hub.model import OFF, Policy, PolicyVm
from vhost_balloon.ctl.watch_view import Screen
from vhost_balloon.printable import printable


class PolicyScreen(Screen[PolicyVm]):
    """The host's state and problems, and a table of VMs."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__(colour=colour)
        self._policy: Policy | None = None

    def add(self, policy: Policy) -> None:
        """Show this from now on."""
        self._policy, self.vms = policy, policy.vms

    def titles(self) -> list[tuple[str, str]]:
        policy = self._policy
        if policy is None:
            return [("title", "")]
        if policy.mode == OFF:
            return [("title", f" {printable(policy.explanation)}")]
        return view.policy_titles(policy)

    def table(self, vms: Sequence[PolicyVm], columns: int) -> list[str]:
        return view.vms_table(vms, columns)

    def kind(self, vm: PolicyVm) -> str:
        word = vm.reason.partition(":")[0]
        if word in ("distress", "silent", "relief", "stuck"):
            return "alarm"
        return "faint" if word in ("off", "manual", "no-driver", "inert", "pinned") else ""
