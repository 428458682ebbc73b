"""The VM's settings: as JSON and back, differences, and invalid values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio_balloon import BalloonFeature
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.service.listeners import SocketOptions
from vhost_balloon.setting_kinds import MAX_BYTES, MAX_STATS_INTERVAL
from vhost_balloon.vm.settings import (
    ALL_FEATURES,
    SETTINGS,
    SettingError,
    VmSettings,
    changed_settings,
    settings_from_json,
    settings_to_json,
)


def names(least: int = 1) -> st.SearchStrategy[str]:
    """Names that the system accepts: any bytes but NUL, in Python's form."""
    return (
        st.binary(min_size=least, max_size=40)
        .filter(lambda name: b"\0" not in name)
        .map(lambda name: name.decode("utf-8", "surrogateescape"))
    )


SETTINGS_OF_ANY_KIND = st.builds(
    VmSettings,
    offered=st.integers(0, ALL_FEATURES),
    policy=st.builds(DiscardPolicy, st.sampled_from(DiscardMode), st.booleans(), st.booleans()),
    stats_interval=st.floats(0, MAX_STATS_INTERVAL),
    target=st.none() | st.integers(1, MAX_BYTES),
    access=st.builds(SocketOptions, st.integers(0, 0o777), st.none() | names(0)),
    report_rate=st.none() | st.integers(1, MAX_BYTES),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(SETTINGS_OF_ANY_KIND)
def test_json_and_back(settings: VmSettings) -> None:
    """Including the text, as in a record."""
    text = json.dumps(settings_to_json(settings))
    assert settings_from_json(json.loads(text), VmSettings()) == settings


@given(SETTINGS_OF_ANY_KIND, SETTINGS_OF_ANY_KIND)
def test_changed_settings_turn_old_into_new(old: VmSettings, new: VmSettings) -> None:
    changed = changed_settings(old, new)
    assert changed == [key for key in SETTINGS if key in changed]
    assert (changed == []) == (old == new)
    after = settings_to_json(new)
    gone = {"target", "report-rate", "socket-group"} - set(after)  # None has no JSON
    values = {key: after[key] for key in changed if key not in gone}
    reached = settings_to_json(settings_from_json(values, old))
    assert {key: value for key, value in reached.items() if key not in gone} == after


def test_changed_settings_are_in_the_order_of_the_table() -> None:
    old = VmSettings(report_rate=5)
    new = settings_from_json({"reporting": False, "target": 1, "discard": "never"}, VmSettings())
    assert changed_settings(old, new) == ["reporting", "discard", "target", "report-rate"]
    assert changed_settings(old, old) == []


@given(st.sampled_from([*SETTINGS]), JSON)
def test_any_setting_is_read_or_a_setting_error(key: str, value: Any) -> None:
    try:
        settings = settings_from_json({key: value}, VmSettings())
    except SettingError as error:
        found = error.key
    else:
        found = key
        assert settings_from_json(settings_to_json(settings), VmSettings()) == settings
    assert found == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reporting", 1),
        ("reporting", "yes"),
        ("discard-hugetlb", None),
        ("discard-other-filesystems", 0),
        ("discard", "sometimes"),
        ("discard", ["auto"]),
        ("stats-interval", True),
        ("stats-interval", "10"),
        ("stats-interval", -1),
        ("stats-interval", 86401),
        ("stats-interval", float("nan")),
        ("target", 0),
        ("target", True),
        ("target", 1.0),
        ("target", 1 << 63),
        ("report-rate", 0),
        ("report-rate", 0.5),
        ("report-rate", True),
        ("report-rate", "512M/h"),
        ("report-rate", 1 << 63),
        ("socket-mode", 0o660),
        ("socket-mode", "rw"),
        ("socket-mode", "1777"),
        ("socket-mode", "-1"),
        ("socket-group", 36),
        ("socket-group", "a\0b"),
        ("socket-group", "\ud800"),
        ("id", "web1"),
        ("frobnicate", 1),
    ],
)
def test_invalid_settings(key: str, value: Any) -> None:
    with pytest.raises(SettingError) as caught:
        settings_from_json({key: value}, VmSettings())
    assert caught.value.key == key


def test_settings_change_only_what_they_name() -> None:
    base = VmSettings(
        ALL_FEATURES, DiscardPolicy(hugetlb=True), 3.0, 5, SocketOptions(0o640, "kvm")
    )
    assert settings_from_json({}, base) == base
    changed = settings_from_json(
        {"reporting": False, "discard": "never", "socket-mode": "0660"}, base
    )
    assert changed == VmSettings(
        ALL_FEATURES & ~int(BalloonFeature.PAGE_REPORTING),
        DiscardPolicy(DiscardMode.NEVER, hugetlb=True),
        3.0,
        5,
        SocketOptions(0o660, "kvm"),
    )
    assert settings_from_json({"reporting": True}, changed).offered == ALL_FEATURES
