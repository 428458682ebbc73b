"""Every reason for which reports are acknowledged without being discarded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.vhost_user_payloads import Region
from protocol.virtio_balloon import BalloonFeature
from tests.support.helpers import MIB, memfd
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.figures.refusal import (
    BY_RULE,
    INERT,
    OPERATOR,
    PAUSE_REASONS,
    Refusal,
)
from vhost_balloon.log.lines import VmLog
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.pin_guard import PinGuard
from vhost_balloon.memory.pins import PinState
from vhost_balloon.memory.region import MappedRegion
from vhost_balloon.memory.syscalls import Filesystem
from vhost_balloon.pace.rate import Bucket
from vhost_balloon.pace.wakefulness import Wakefulness
from vhost_balloon.queues.attached_guest import AttachedGuest

HUGETLB, EXT4, TMPFS = 0x958458F6, 0xEF53, 0x01021994


def attached(mode: DiscardMode = DiscardMode.ALWAYS) -> AttachedGuest:
    return AttachedGuest(
        Balloon(), Counters(), DiscardPolicy(mode), Wakefulness(), PinGuard(None), VmLog("vm1")
    )


def reasons(guest: AttachedGuest) -> tuple[str, ...]:
    return guest.pause_reasons(0.0)


@pytest.fixture
def regions() -> Iterator[list[MappedRegion]]:
    """Two regions on tmpfs."""
    found = [MappedRegion(Region(n * MIB, MIB, n * MIB, 0), memfd(MIB)) for n in range(2)]
    yield found
    for region in found:
        region.close()


def apply(guest: AttachedGuest, reason: str) -> None:
    """Make a reason apply."""
    match reason:
        case "operator":
            guest.paused = True
        case Refusal.FOREIGN:
            guest.foreign = True
        case Refusal.NEVER:
            guest.policy = DiscardPolicy(DiscardMode.NEVER)
        case Refusal.PINNED:
            guest.policy, guest._pins_seen = DiscardPolicy(), PinState.PINNED
        case Refusal.PINS_UNKNOWN:
            guest.policy, guest._pins_seen = DiscardPolicy(), PinState.UNKNOWN
        case Refusal.POISON:
            guest.balloon.features = int(BalloonFeature.PAGE_POISON)
            guest.balloon._poison = 0xAAAAAAAA
        case Refusal.RATE:
            guest.report_limit = Bucket(1, 0)


MODES = {Refusal.NEVER, Refusal.PINNED, Refusal.PINS_UNKNOWN}
"""Of these, one at most applies."""
OF_THE_GUEST = [
    reason for reason in PAUSE_REASONS if reason not in (INERT, Refusal.HUGETLB, Refusal.FILESYSTEM)
]


@given(st.sets(st.sampled_from(OF_THE_GUEST)))
def test_all_that_apply_are_shown_together(wanted: set[str]) -> None:
    guest = attached()
    shown = wanted - set(sorted(wanted & MODES)[1:])
    for reason in shown:
        apply(guest, reason)
    assert reasons(guest) == tuple(reason for reason in PAUSE_REASONS if reason in shown)


@pytest.mark.parametrize("reason", OF_THE_GUEST)
def test_the_reason_of_a_refusal_is_among_those_shown(reason: str) -> None:
    guest = attached()
    assert (reasons(guest), guest.report_refusal()) == ((), None)
    apply(guest, reason)
    assert reasons(guest) == (reason,)
    refusal = {OPERATOR: Refusal.PAUSED, Refusal.RATE: None}.get(reason, reason)
    assert guest.report_refusal() == refusal


def test_pins_are_unknown_before_the_first_look() -> None:
    assert reasons(attached(DiscardMode.AUTO)) == ("pins-unknown",)


@pytest.mark.parametrize(
    ("backings", "shown"),
    [
        ((TMPFS, TMPFS), ()),
        ((HUGETLB, TMPFS), ()),
        ((TMPFS, EXT4), ()),
        ((HUGETLB, HUGETLB), ("hugetlb",)),
        ((EXT4, EXT4), ("filesystem",)),
        ((EXT4, HUGETLB), ("hugetlb", "filesystem")),
    ],
)
def test_a_backing_is_a_reason_if_it_keeps_all_memory(
    regions: list[MappedRegion], backings: tuple[int, int], shown: tuple[str, ...]
) -> None:
    guest = attached()
    for region, magic in zip(regions, backings, strict=True):
        region.filesystem = Filesystem(magic, 4096)
    guest.memory = GuestMemory()
    assert reasons(guest) == (), "without memory"
    guest.memory.replace(regions)
    assert reasons(guest) == shown
    guest.policy = DiscardPolicy(DiscardMode.ALWAYS, hugetlb=True, other_filesystems=True)
    assert reasons(guest) == ()


def test_a_rate_limit_is_a_reason_while_it_is_spent() -> None:
    guest = attached()
    guest.report_limit = Bucket(MIB, 2 * MIB)
    assert guest.pause_reasons(100.0) == ()
    guest.report_limit.take(3 * MIB, 100.0)
    assert guest.pause_reasons(100.5) == ("rate",)
    assert guest.pause_reasons(101.5) == ()


def test_the_list_is_closed() -> None:
    """Every rule is a reason, but for those that concern a part of some reports."""
    assert len(set(PAUSE_REASONS)) == len(PAUSE_REASONS)
    assert {*PAUSE_REASONS} - {OPERATOR, INERT} == BY_RULE - {
        Refusal.PAUSED,
        Refusal.PARTIAL_HUGE_PAGE,
        Refusal.UNTOUCHED,
    }
