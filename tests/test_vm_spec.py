"""A VM's specification: as JSON and back, and everything that it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.guest_memory import DiscardMode, DiscardPolicy
from vhost_balloon.vm_settings import (
    ALL_FEATURES,
    MAX_REPORT_RATE,
    MAX_STATS_INTERVAL,
    MAX_TARGET,
    SETTINGS,
    SWITCHES,
    SettingError,
    SocketOptions,
    VmSettings,
    settings_from_json,
    settings_to_json,
)
from vhost_balloon.vm_spec import Origin, VmSpec, read_id, read_socket_path


def names(least: int = 1) -> st.SearchStrategy[str]:
    """What the system takes as a name: any bytes but NUL, as Python shows them."""
    return (
        st.binary(min_size=least, max_size=40)
        .filter(lambda name: b"\0" not in name)
        .map(lambda name: name.decode("utf-8", "surrogateescape"))
    )


IDS = names().filter(lambda name: "/" not in name and name[0] != "." and name not in (
    "control", "metrics"
))  # fmt: skip
SETTINGS_OF_ANY_KIND = st.builds(
    VmSettings,
    offered=st.sets(st.sampled_from([int(bit) for bit, _ in SWITCHES.values()])).map(sum),
    policy=st.builds(DiscardPolicy, st.sampled_from(DiscardMode), st.booleans(), st.booleans()),
    stats_interval=st.floats(0, MAX_STATS_INTERVAL),
    target=st.none() | st.integers(1, MAX_TARGET),
    access=st.builds(SocketOptions, st.integers(0, 0o777), st.none() | names(0)),
    report_rate=st.none() | st.integers(1, MAX_REPORT_RATE),
)
SPECS = st.builds(
    VmSpec,
    id=IDS,
    settings=SETTINGS_OF_ANY_KIND,
    socket_path=st.none() | names(0).map(lambda path: Path("/" + path)),
    origin=st.sampled_from(Origin),
)


@given(SPECS)
def test_json_and_back(spec: VmSpec) -> None:
    """Through the text, too, as a record keeps it."""
    assert VmSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


GOOD = VmSpec("web1", VmSettings(target=1 << 30), Path("/run/web1.sock")).to_json()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*GOOD, "more"]), JSON)
def test_any_value_in_any_place_is_read_or_a_value_error(key: str, value: Any) -> None:
    try:
        spec = VmSpec.from_json({**GOOD, key: value})
    except ValueError:
        return
    assert VmSpec.from_json(spec.to_json()) == spec


@given(JSON)
def test_any_json_is_read_or_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        VmSpec.from_json(value)


@given(st.sampled_from(SETTINGS), JSON)
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
        ("report-rate", "512M"),
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
def test_settings_that_are_mistakes(key: str, value: Any) -> None:
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
        ALL_FEATURES & ~int(SWITCHES["reporting"][0]),
        DiscardPolicy(DiscardMode.NEVER, hugetlb=True),
        3.0,
        5,
        SocketOptions(0o660, "kvm"),
    )
    assert settings_from_json({"reporting": True}, changed).offered == ALL_FEATURES


@pytest.mark.parametrize(
    "name", ["", ".", ".hidden", "control", "metrics", "a/b", "a\0b", "\ud800", "x" * 256, None, 5]
)
def test_names_that_no_vm_can_have(name: Any) -> None:
    with pytest.raises(SettingError, match=r"^'id' "):
        read_id(name)


@pytest.mark.parametrize("path", ["", "web1.sock", "./a", "/a\0b", "/\ud800", None, 5, ["/a"]])
def test_paths_that_no_socket_can_have(path: Any) -> None:
    with pytest.raises(SettingError, match=r"^'socket-path' "):
        read_socket_path(path)
