"""The daemon's memory stays bounded, whatever a guest and its front end send."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from protocol import vhost_user as vu
from protocol.virtio_balloon import BalloonFeature, Queue
from tests.support.command import daemon
from tests.support.end_to_end import LINUX, MIB, PAGE, ByHand, by_hand
from vhost_balloon.simulator.connection import Connection, connect_socket
from vhost_balloon.simulator.events import EventFd
from vhost_balloon.simulator.memory import GuestRam

LONGEST = 32768
HOLE = 1 << 40
BOUND = 64 * MIB
"""How much one guest may make the daemon grow: five chains of 32768 buffers, some 5 MB each."""


def peak(pid: int) -> int:
    """A process's peak resident set size in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def greedy_memory() -> GuestRam:
    ram = GuestRam.create(64 * MIB, driver_area=32 * MIB)
    ram.add(64 << 30, HOLE)  # sparse
    return ram


async def greedy_rings(guest: ByHand) -> None:
    """The longest chains of the longest buffers, on all rings at once."""
    scattered = guest.pfns(range(0, 2 * 16384, 2))
    everything = (HOLE, (1 << 32) - 1, False)
    kinds = {
        Queue.INFLATE: [[everything] * LONGEST, [scattered] * 64, [(HOLE, 1, False)] * LONGEST],
        Queue.DEFLATE: [[everything] * LONGEST, [scattered] * 64, [(HOLE, 4, False)] * LONGEST],
        Queue.REPORTING: [
            [(HOLE + 2 * PAGE * number, PAGE, True) for number in range(LONGEST)],
            [(HOLE, (1 << 32) - 1, True)] * LONGEST,
        ],
        Queue.STATS: [[everything] * LONGEST, [everything] * LONGEST],
        Queue.FREE_PAGE: [[(HOLE, (1 << 32) - 1, True)] * LONGEST],
    }
    for queue, chains in kinds.items():
        for buffers in chains:
            guest.rings[queue].add(buffers, indirect=True)
        guest.rings[queue].kick()
    with trio.fail_after(120):
        for queue, chains in kinds.items():
            left = len(chains) - (queue is Queue.STATS)  # the device holds the last
            while left > 0:
                left -= len(await guest.rings[queue].wait_used())


async def greedy_messages(connection: Connection) -> None:
    """Payloads of all sizes, unexpected descriptors, unknown requests."""
    eventfd = EventFd()
    for request in range(1, 60):
        for size in (0, 8, 4096, vu.MAX_PAYLOAD_SIZE, vu.MAX_PAYLOAD_SIZE + 1, 4 * MIB):
            message = vu.HEADER.pack(request, vu.VERSION, size) + bytes(size)
            await connection.send_raw(message, [eventfd.fileno()] * (request % 254))
    eventfd.close()


@pytest.mark.timeout(200)
async def test_a_greedy_guest_costs_a_bounded_amount_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "vm1.sock"
    features = LINUX | int(BalloonFeature.FREE_PAGE_HINT)
    with daemon(f"--socket-path={path}", "--log-level=error", wait_for=path) as served:
        before = peak(served.process.pid)
        ram = greedy_memory()
        async with by_hand(path, ram, features=features, queue_size=LONGEST) as guest:
            for _ in range(2):
                await greedy_rings(guest)
            for _ in range(2000):
                await guest.front_end.get_config()
        for _ in range(3):
            sock = await connect_socket(path)
            async with Connection(sock) as connection, trio.open_nursery() as nursery:
                nursery.start_soon(drop_answers, sock)
                await greedy_messages(connection)
                half = vu.HEADER.pack(vu.Request.SET_CONFIG, vu.VERSION, vu.MAX_PAYLOAD_SIZE)
                await connection.send_raw(half + bytes(1000))
                nursery.cancel_scope.cancel()
        grown = peak(served.process.pid) - before
        print(f"the daemon grew by {grown / MIB:.1f} MiB")
        assert grown < BOUND
        async with by_hand(path) as guest:
            await guest.inflate([8 * MIB // PAGE])
        assert served.end()[0] == 0


async def drop_answers(sock: trio.socket.SocketType) -> None:
    while await sock.recv(1 << 16):
        pass
