"""Lets a connection that says nothing make way for a front end that waits.

One front end is served at a time, and a stray connection (a port scanner, a health check) would
keep the VM's QEMU out for as long as it stays. Once a whole message came, a connection is never
ended for another one: its QEMU would abort at the guest's next reset.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from vhost_balloon.front_end.transport import STALL_PATIENCE, Transport

SILENT = "connection ended: no message came, and another front end waits"


async def make_way(
    transport: Transport, next_waits: Callable[[], Awaitable[None]], end: Callable[[], None]
) -> None:
    """Call end() once no whole message has come for STALL_PATIENCE and another front end waits.

    next_waits returns once one waits. Returns as soon as a message comes.
    """
    with trio.CancelScope() as scope:
        transport.heard = scope.cancel
        if transport.is_new:
            await trio.sleep(STALL_PATIENCE)
            await next_waits()
            if transport.is_new:  # a message may have come together with the other front end
                end()
