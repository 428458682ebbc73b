"""Real guests that do not fit their host: what the policy makes of it, and what happens without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.rig.errors import GuestError, RigUnavailable
from tests.rig.fixtures import refuse
from tests.rig.host.hub import Hub
from tests.rig.inside import appetite
from tests.rig.memory import MiB
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


@contextmanager
def booted() -> Iterator[Guests]:
    need_root("THE POLICY WITH REAL GUESTS")
    with TemporaryDirectory() as folder:
        try:
            with three_guests(Path(folder)) as guests:
                yield guests
        except RigUnavailable as error:
            refuse(error.reason)


@dataclass(frozen=True)
class Policed:
    """Guests whose caches the policy has cut, and the hub that did."""

    guests: Guests
    hub: Hub

    def decisions(self) -> dict[str, dict[str, Any]]:
        """What the policy knows of each VM, by its name."""
        with self.hub.qmp() as qmp:
            return {vm["id"]: vm for vm in qmp.execute("query-policy")["vms"]}

    def remembers_the_burst(self) -> bool:
        """Whether the burster's peak has it, and its last statistics no more."""
        burster = self.decisions()["burster"]
        return bool(burster["peak"] > burster["demand"] + BURST // 2)

    def check_nobody_suffered(self) -> None:
        assert self.guests.group.kills() == 0
        for name, one in self.guests.all().items():
            assert "Out of memory" not in one.guest.dmesg(), name
            swapped = appetite.swapped(one.guest)
            print(f"{name} swapped {swapped // 1024} KiB")
            assert swapped < SWAPPED, name


@pytest.fixture(scope="module")
def policed() -> Iterator[Policed]:
    with booted() as guests:
        settings = f'mode = "on"\nreserve = {RESERVE}\ncgroup = "{guests.group.folder}"\n'
        with Hub(guests.folder, f"[policy]\n{settings}") as hub:
            fill_caches(guests)
            wait_until(lambda: guests.targets()["burster"] < NEEDED, 60)
            yield Policed(guests, hub)


def test_without_a_policy_the_oom_killer_comes() -> None:
    with booted() as guests:
        with suppress(GuestError):  # the burster may be the victim
            fill_caches(guests)
            burst(guests)
        print(f"killed {guests.group.kills()} of three guests in {LIMIT // MiB} MiB")
        assert guests.group.kills() >= 1


def test_the_policy_takes_cache_and_serves_a_burst(policed: Policed) -> None:
    took = burst(policed.guests)
    found = {name: vm["decisions"] for name, vm in policed.decisions().items()}
    least = LIMIT - policed.guests.group.peak()
    print(f"a burst of {BURST // MiB} MiB took {took:.0f} s; orders: {found}")
    print(f"at least {least // MiB} MiB were available")
    assert found["reader"]["reclaim"] > 0
    assert found["burster"]["reclaim"] > 0
    assert found["burster"]["relief"] > 0
    assert not any(found["idle"].values())
    policed.check_nobody_suffered()


def test_targets_stay_when_the_hub_dies_and_its_successor_remembers(policed: Policed) -> None:
    took = burst(policed.guests)
    wait_until(policed.remembers_the_burst, 60)  # statistics come each few seconds
    policed.hub.kill()
    targets = policed.guests.targets()
    appetite.read(policed.guests.burster.guest, 100 * MiB).wait(120)
    assert policed.guests.targets() == targets
    policed.hub.start()
    wait_until(lambda: policed.decisions().keys() == policed.guests.all().keys(), 30)
    print(f"a burst of {BURST // MiB} MiB took {took:.0f} s, and is remembered")
    assert policed.remembers_the_burst()
    policed.check_nobody_suffered()
