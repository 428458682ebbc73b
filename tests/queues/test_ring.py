"""A started ring, apart from its virtqueue."""

from __future__ import annotations

import os

import pytest

from protocol.vhost_user_payloads import VringAddress
from protocol.virtio_balloon import Queue
from vhost_balloon.fds import Kick, OwnedFd
from vhost_balloon.pace.polling import Polling
from vhost_balloon.queues.ring import StartedRing, stand_in
from vhost_balloon.session.effects import RingSetup


@pytest.mark.parametrize("queue", Queue)
async def test_nothing_is_polled_for_after_statistics_are_requested(queue: Queue) -> None:
    """An idle VM would spend more on that than on its statistics."""
    setup = RingSetup(4, VringAddress(0, 0, 0, 0, 0, 0), 0)
    polling = Polling()
    ring = StartedRing(0, setup, stand_in(setup, 0), Kick(OwnedFd(os.eventfd(0))), polling)
    ring.queue = queue
    ring.complete([])
    polling.asked()
    assert (queue in polling._followed_soon) is (queue is not Queue.STATS)
    ring.close()
