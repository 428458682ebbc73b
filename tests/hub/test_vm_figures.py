"""What the policy believes of a VM's daemon."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes.policed_daemon import policed_document
from tests.support.helpers import GIB, MIB
from vhost_balloon.errors import StateError
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.hub.vm_figures import read_policed
from vhost_balloon.policy.inputs import Sample, VmSettings
from vhost_balloon.policy.interfaces import Policed

NOW = 1000.0
PLAIN = VmSettings()


def read(settings: VmSettings = PLAIN, /, **changes: Any) -> Policed:
    return read_policed([policed_document(**changes)], "5-6-7", settings, NOW)


def test_a_vm_that_can_be_moved() -> None:
    policed = read()
    figures = policed.figures
    assert figures.guest == "5-6-7:77"
    assert (figures.size, figures.actual, figures.target) == (4 * GIB, 3 * GIB, 3 * GIB)
    assert figures.resident == 2 * GIB
    assert figures.sample == Sample(990.0, 3 * GIB, GIB, 12)
    assert figures.obstacle is None
    assert (policed.held, policed.held_for) == (False, None)


@pytest.mark.parametrize(
    ("changes", "obstacle", "detail"),
    [
        ({"held": True}, Reason.MANUAL, ""),
        ({"attached": False}, Reason.NO_DRIVER, ""),
        ({"driver-ready": False}, Reason.NO_DRIVER, ""),
        ({"guest-memory": 0}, Reason.NO_DRIVER, ""),
        ({"target": None}, Reason.NO_DRIVER, ""),
        ({"actual": None}, Reason.NO_DRIVER, ""),
        ({"resident": None}, Reason.NO_DRIVER, ""),
        ({"attached": False, "state": "stuck"}, Reason.NO_DRIVER, ""),
        ({"attached": False, "pause-reasons": ["pinned"]}, Reason.NO_DRIVER, ""),
        (
            {"state": "inert", "driver-ready": False, "target": None, "pause-reasons": ["inert"]},
            Reason.INERT,
            "",
        ),
        ({"pause-reasons": ["pinned"]}, Reason.PINNED, "pinned"),
        ({"pause-reasons": ["poison", "operator"]}, Reason.PINNED, "operator"),
        ({"pause-reasons": ["rate"]}, None, ""),
        ({"pause-reasons": ["poison"]}, None, ""),
        ({"pause-reasons": ["\x1b[2J"]}, None, ""),
        ({"state": "stuck"}, None, ""),
        ({"held": None}, None, ""),
    ],
)
def test_why_a_vm_cannot_be_moved(
    changes: dict[str, Any], obstacle: Reason | None, detail: str
) -> None:
    figures = read(**changes).figures
    assert (figures.obstacle, figures.detail) == (obstacle, detail)


def test_the_first_obstacle_is_shown() -> None:
    everything = {"held": True, "attached": False, "state": "inert", "pause-reasons": ["pinned"]}
    off = read(VmSettings(on=False), **everything)
    assert off.figures.obstacle is Reason.OFF
    assert off.held, "it can still be released"
    assert read(**everything).figures.obstacle is Reason.MANUAL


@pytest.mark.parametrize(
    ("backing", "setting", "detail"),
    [
        ("hugetlb", "discard-hugetlb", "hugetlb"),
        ("other", "discard-other-filesystems", "filesystem"),
    ],
)
def test_memory_that_is_not_discarded_even_in_part(backing: str, setting: str, detail: str) -> None:
    regions = [{"backing": "tmpfs"}, {"backing": backing}]
    figures = read(regions=regions).figures
    assert (figures.obstacle, figures.detail) == (Reason.PINNED, detail)
    assert read(regions=regions, settings=None).figures.obstacle is Reason.PINNED
    assert read(regions=regions, settings={setting: True}).figures.obstacle is None


def test_the_ceiling_is_the_target_that_the_vm_starts_with() -> None:
    assert read().figures.ceiling == 4 * GIB
    assert read(settings={"target": 3 * GIB}).figures.ceiling == 3 * GIB
    wanted = VmSettings(ceiling=2 * GIB)
    assert read(wanted, settings={"target": 3 * GIB}).figures.ceiling == 2 * GIB
    assert read(settings={"target": 9 * GIB}).figures.ceiling == 4 * GIB


@pytest.mark.parametrize("missing", ["stats-taken", "stats-actual"])
def test_an_older_daemon_gives_no_sample(missing: str) -> None:
    assert read(**{missing: None}).figures.sample is None


def test_statistics_without_what_is_available_are_none() -> None:
    assert read(stats=None).figures.sample is None
    assert read(stats={"stat-free-memory": 5}).figures.sample is None
    sample = read(stats={"stat-available-memory": 5}).figures.sample
    assert sample == Sample(990.0, 3 * GIB, 5, None)


def test_a_sample_never_comes_from_the_future() -> None:
    """Otherwise the guest's own would not be seen as new for as long."""
    sample = read(**{"stats-taken": 1e18}).figures.sample
    assert sample is not None
    assert sample.taken == NOW


def test_the_rest_of_a_hold() -> None:
    held = read(held=True, **{"held-for": 12.5})
    assert (held.held, held.held_for) == (True, 12.5)
    assert read(held=True).held_for is None
    assert read(**{"held-for": 12.5}).held_for is None


NO_SIZES: list[Any] = [-1, 1 << 63, True, "1", 1.5, [], math.nan]
NO_TIMES: list[Any] = [-1, math.nan, math.inf, True, "1", [], 10**400]
NO_FLAGS: list[Any] = [1, "yes", []]
BAD: list[dict[str, Any]] = [
    *({name: value} for name in ("guest-memory", "target", "actual", "resident", "stats-actual")
      for value in NO_SIZES),
    *({"stats-taken": value} for value in NO_TIMES),
    *({name: value} for name in ("attached", "driver-ready", "held") for value in NO_FLAGS),
    {"attached": None}, {"state": None}, {"front-end-pid": -1}, {"front-end-pid": "x"},
    {"stats": []}, {"stats": {"stat-available-memory": -5}},
    {"stats": {"stat-available-memory": 5, "stat-major-faults": "x"}},
    {"settings": [1]}, {"settings": {"target": "4G"}}, {"pause-reasons": "pinned"},
    {"regions": {}}, {"regions": [5]}, {"regions": [{}]}, {"regions": [{"backing": []}]},
    {"regions": [{"backing": "hugetlb"}], "settings": {"discard-hugetlb": 1}},
    {"held": True, "held-for": -1.0},
]  # fmt: skip


@pytest.mark.parametrize("changes", BAD, ids=str)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(StateError, match=r"^its answer: "):
        read(**changes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(JSON)
def test_any_answer(answer: Any) -> None:
    with pytest.raises(StateError):
        read_policed(answer, "", PLAIN, NOW)
    with pytest.raises(StateError):
        read_policed([answer], "", PLAIN, NOW)


@given(st.sampled_from(sorted(policed_document())), JSON)
def test_any_member(name: str, value: Any) -> None:
    with suppress(StateError):
        figures = read(**{name: value}).figures
        for size in (figures.size, figures.actual, figures.target, figures.resident):
            assert 0 <= size < 1 << 63
        assert figures.sample is None or 0 <= figures.sample.taken <= NOW
        assert figures.obstacle is not None or figures.size > 0
        assert figures.floor <= figures.ceiling <= max(figures.size, MIB)
