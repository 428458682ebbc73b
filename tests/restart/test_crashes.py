"""SIGKILL at every step of a scenario: the front end still gets the right answers.

The scenario is always the same; the seed of a failure repeats it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from protocol.vhost_user import Request
from protocol.virtio_balloon import Queue, StatTag
from tests.support.end_to_end import PAGE, by_hand, eventually, fill
from tests.support.restarting.crashing import POINTS
from tests.support.restarting.scenario import GUEST, KEPT, Scenario, hosting

CRASHES = 8
"""Most deaths in one scenario; each process dies at a different step."""


def crashes(seed: int) -> list[str]:
    """Steps at which successive processes are killed: soon after the start, or late.

    The first one is reached by any scenario; points may come too rarely for their count.
    """
    chosen = random.Random(seed)
    found: list[str] = []
    for _ in range(CRASHES):
        point, count = "any", int(chosen.choice((10, 40, 160, 400)) * (0.5 + chosen.random()))
        if found and chosen.random() < 0.5:
            point, count = chosen.choice(list(POINTS)), chosen.choice((1, 2, 3, 5, 8, 13, 21))
        found.append(f"{point}:{chosen.choice(('before', 'after'))}:{count}")
    return found


async def survives(folder: Path, *steps: str) -> int:
    """Run the scenario; return how often the daemon was started again."""
    async with hosting(folder, crashes=steps) as host:
        await Scenario.run(host)
        await eventually(lambda: len(host.manager.names()) == KEPT)
        assert "answered and nothing is done" not in host.log()
        return host.manager.restarts


async def test_without_a_crash(tmp_path: Path) -> None:
    assert await survives(tmp_path) == 0


@pytest.mark.parametrize("seed", range(8))
async def test_killed_again_and_again(tmp_path: Path, seed: int) -> None:
    assert await survives(tmp_path, *crashes(seed)) > 0


STEPS = [
    # A message has just arrived and is not on record yet.
    "store.keep:before:10",
    "store.keep:after:10",
    "journal.begin:before:3",
    "journal.begin:after:3",
    # While the front end attaches: its socket is stored, but its record is incomplete.
    *(f"record.save:before:{count}" for count in (3, 4, 5, 6)),
    "journal.sending:after:9",
    "pipe.send:after:9",
    # A message's descriptors are on the shelf, but not on record.
    *(f"shelf.put:{side}:{count}" for side in ("before", "after") for count in (1, 2, 7)),
]


@pytest.mark.parametrize("step", STEPS)
async def test_killed_once(tmp_path: Path, step: str) -> None:
    assert await survives(tmp_path, step) == 1


COMPACTING = [
    *(f"shelf.compact:{side}:{count}" for side in ("before", "after") for count in (1, 2)),
    *(f"pair.empty:{side}:{count}" for side in ("before", "after") for count in (1, 2)),
    *(f"pair.send:{side}:{count}" for side in ("before", "after") for count in (12, 14, 30)),
]


@pytest.mark.parametrize("step", COMPACTING)
async def test_killed_while_the_shelf_is_compacted(tmp_path: Path, step: str) -> None:
    """Compaction happens at every opportunity."""
    environment = {"SPARE_PACKETS": "0"}
    async with hosting(tmp_path, crashes=[step], environment=environment) as host:
        await Scenario.run(host)
        assert "answered and nothing is done" not in host.log()
        assert host.manager.restarts == 1


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("side", ["before", "after"])
async def test_killed_while_the_end_of_a_driver_is_put_on_record(
    tmp_path: Path, side: str, count: int
) -> None:
    """The request counts as carried out only once all of its changes are on record."""
    step, environment = f"record.save:{side}:{count}", {"CRASH_FROM": "discard"}
    async with (
        hosting(tmp_path, crashes=[step], environment=environment) as host,
        by_hand(host.path()) as guest,
    ):
        ring = guest.rings[Queue.STATS]
        ring.add([guest.stats({StatTag.MEMTOT: GUEST})])
        ring.kick()
        await guest.front_end.get_config()  # waits for all earlier messages
        fill(guest.ram, 5000 * PAGE, PAGE)
        await guest.inflate([5000])  # the steps are counted from here
        await guest.front_end.set_config(slice(4, 8), (5).to_bytes(4, "little"))
        await guest.front_end.command(Request.RESET_DEVICE)
        await guest.front_end.get_config()
        await eventually(lambda: host.manager.restarts == 1)
        assert (await guest.front_end.get_config())[4:8] == bytes(4)
        found = host.insist("query-vms")[0]
        assert (found["actual"], found["stats"]) == (GUEST, {})


async def test_killed_again_while_answering_a_pending_request(tmp_path: Path) -> None:
    """The reply is in the pipe when the first process dies, and gone when the second does."""
    steps = ("journal.sending:after:9", "pipe.send:before:1", "eventfd.signal:before:1")
    assert await survives(tmp_path, *steps) >= 2
