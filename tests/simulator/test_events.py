"""The simulator's eventfds."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from vhost_balloon.simulator.events import EventFd


async def test_an_eventfd_counts_and_wakes() -> None:
    with EventFd() as event:
        event.signal()
        event.signal()
        assert await event.wait() == 2
        assert event.take() == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(event.wait)
            await trio.testing.wait_all_tasks_blocked()
            event.signal()


async def test_closing_an_eventfd_wakes_its_waiter() -> None:
    event = EventFd()
    async with trio.open_nursery() as nursery:

        async def waiter() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await event.wait()

        nursery.start_soon(waiter)
        await trio.testing.wait_all_tasks_blocked()
        event.close()
        event.close()
