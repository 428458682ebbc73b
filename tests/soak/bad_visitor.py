"""Front ends that send invalid traffic and disconnect."""

from __future__ import annotations

import contextlib
import os
import random
import struct

from vhost_balloon.simulator.connection import Refused
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.wire import BackEndGone


async def visit(path: str, chance: random.Random) -> None:
    """Connect, misbehave in one of several ways, and disconnect."""
    with GuestRam.create(2 << 20, sealed=chance.random() < 0.5) as ram:
        async with await FrontEnd.connect(path, ram) as front_end:
            with contextlib.suppress(BackEndGone, Refused):  # the back end may hang up
                await chance.choice((_noise, _half, _descriptors, _wrong_order))(front_end, chance)


async def _noise(front_end: FrontEnd, chance: random.Random) -> None:
    await front_end.send_raw(chance.randbytes(chance.randrange(1, 4000)))
    await front_end.receive_reply()


async def _half(front_end: FrontEnd, chance: random.Random) -> None:
    """Stop in the middle of a message after a valid start."""
    await front_end.handshake()
    await front_end.send_raw(struct.pack("<III", chance.randrange(1, 45), 1, 40) + b"half")


async def _descriptors(front_end: FrontEnd, chance: random.Random) -> None:
    """Send requests with descriptors of the wrong kind and number."""
    await front_end.handshake()
    reading, writing = os.pipe()
    try:
        for _ in range(20):
            fds = [chance.choice((reading, writing))] * chance.randrange(1, 8)
            payload = chance.randbytes(chance.choice((0, 8, 16, 40)))
            await front_end.send(chance.randrange(1, 45), payload, fds, need_reply=True)
            await front_end.receive_reply()
    finally:
        os.close(reading)
        os.close(writing)


async def _wrong_order(front_end: FrontEnd, chance: random.Random) -> None:
    """Send valid requests in any order, with random values."""
    await front_end.handshake()
    for _ in range(50):
        request, value = chance.randrange(1, 45), chance.getrandbits(chance.choice((4, 16, 64)))
        await front_end.send(request, struct.pack("<Q", value), need_reply=True)
        await front_end.receive_reply()
