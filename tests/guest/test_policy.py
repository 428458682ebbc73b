"""Real guests that do not fit their host: what the policy makes of it, and what happens without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.rig.errors import GuestError, RigUnavailable
from tests.rig.fixtures import refuse
from tests.rig.host.hub import Hub
from tests.rig.inside import appetite
from tests.rig.memory import MiB
from tests.rig.qmp import QMPClient
from tests.rig.waiting import wait_until
from tests.support.huge_pages import need_root
from tests.support.vms.policy_play import (
    BURST,
    LIMIT,
    NEEDED,
    RESERVE,
    SWAPPED,
    Guests,
    burst,
    fill_caches,
    three_guests,
)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

_AGAIN: Final = 100 * MiB


@pytest.fixture
def guests(short_folder: Path) -> Iterator[Guests]:
    need_root("THE POLICY WITH REAL GUESTS")
    try:
        with three_guests(short_folder) as booted:
            yield booted
    except RigUnavailable as error:
        refuse(error.reason)


def policy_of(guests: Guests) -> Hub:
    settings = f'mode = "on"\nreserve = {RESERVE}\ncgroup = "{guests.group.folder}"\n'
    return Hub(guests.folder, f"[policy]\n{settings}")


def decisions(qmp: QMPClient) -> dict[str, dict[str, Any]]:
    """What the policy knows of each VM, by its name."""
    return {vm["id"]: vm for vm in qmp.execute("query-policy")["vms"]}


def check_nobody_suffered(guests: Guests) -> None:
    assert guests.group.kills() == 0
    for name, one in guests.all().items():
        assert "Out of memory" not in one.guest.dmesg(), name
        assert appetite.swapped(one.guest) < SWAPPED, name


def test_without_a_policy_the_oom_killer_comes(guests: Guests) -> None:
    with suppress(GuestError):  # the burster may be the victim
        fill_caches(guests)
        burst(guests)
    print(f"killed {guests.group.kills()} of three guests in {LIMIT // MiB} MiB")
    assert guests.group.kills() >= 1


def test_the_policy_takes_cache_and_serves_a_burst(guests: Guests) -> None:
    with policy_of(guests) as hub:
        with hub.qmp() as qmp:
            fill_caches(guests)
            wait_until(lambda: guests.targets()["burster"] < NEEDED, 60)
            first = burst(guests)
            appetite.read(guests.burster.guest, _AGAIN).wait(120)
            second = burst(guests)
            found = decisions(qmp)
        swapped = [appetite.swapped(one.guest) // MiB for one in guests.all().values()]
        print(
            f"bursts of {BURST // MiB} MiB took {first:.0f} and {second:.0f} s; at least "
            f"{(LIMIT - guests.group.peak()) // MiB} MiB were available; swapped: {swapped} MiB; "
            f"orders: { {name: vm['decisions'] for name, vm in found.items()} }"
        )
        check_nobody_suffered(guests)
        assert found["reader"]["decisions"]["reclaim"] > 0
        assert found["burster"]["decisions"]["reclaim"] > 0
        assert found["burster"]["decisions"]["relief"] > 0
        assert not any(found["idle"]["decisions"].values())
        check_a_death(guests, hub)


def check_a_death(guests: Guests, hub: Hub) -> None:
    """Guests keep their targets when the hub is killed; its successor remembers the bursts."""
    hub.kill()
    targets = guests.targets()
    appetite.read(guests.burster.guest, _AGAIN).wait(120)
    assert guests.targets() == targets
    hub.start()
    with hub.qmp() as qmp:
        wait_until(lambda: decisions(qmp).keys() == guests.all().keys(), 30)
        burster = decisions(qmp)["burster"]
    assert burster["peak"] > burster["demand"] + BURST // 2
    check_nobody_suffered(guests)
