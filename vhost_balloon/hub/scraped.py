"""What a scrape of the hub shows: the VMs' snapshots, and the policy's state at the same time."""

from __future__ import annotations

from typing import Any

from vhost_balloon.hub.vms import Host
from vhost_balloon.metrics.document import Document
from vhost_balloon.metrics.policy_families import PolicyCollector, with_policy
from vhost_balloon.policy.report import describe
from vhost_balloon.policy.runner import Policy
from vhost_balloon.policy.settings import Mode


class Scraped:
    def __init__(self, host: Host, policy: Policy) -> None:
        self._host = host
        self._policy = policy
        self._document: Any = describe(policy.report())

    async def snapshots(self) -> list[tuple[str, Document | None]]:
        """See Host.snapshots()."""
        rows = await self._host.snapshots()
        self._document = describe(self._policy.report())
        return with_policy(rows, self._document)

    def collector(self) -> PolicyCollector:
        """Shows the policy as it was when the snapshots were taken."""
        return PolicyCollector(lambda: self._document, tuple(mode.value for mode in Mode))
