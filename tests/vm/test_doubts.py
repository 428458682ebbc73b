"""Settings that can only be a mistake."""

from __future__ import annotations

from typing import Any

import pytest

from vhost_balloon.vm.doubts import doubts
from vhost_balloon.vm.settings import VmSettings, settings_from_json


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"target": 1024}, "'target': 1024 is 1 KiB, less than a guest can run on; write 1024M"),
        ({"target": "512K"}, "'target': 524288 is 512 KiB, less than a guest can run on"),
        ({"report-rate": 512}, "'report-rate': 512 B a second is less than one report"),
        ({"report-rate": "512K/s"}, "'report-rate': 512 KiB a second"),
        ({"stats-interval": 10_000}, "'stats-interval': 10000 s are 2.8 hours; the unit is"),
    ],
)
def test_a_doubt(values: dict[str, Any], text: str) -> None:
    (doubt,) = doubts(settings_from_json(values, VmSettings()))
    assert doubt.startswith(text)


def test_every_doubt_is_told() -> None:
    values = {"target": 1, "report-rate": 1, "stats-interval": 86400}
    found = doubts(settings_from_json(values, VmSettings()))
    assert [doubt.split("'")[1] for doubt in found] == [*values]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"target": "16M", "report-rate": "1M/s", "stats-interval": 3600},
        {"target": "2G", "report-rate": "512M", "stats-interval": 0},
        {"stats-interval": 0.5},
    ],
)
def test_no_doubt(values: dict[str, Any]) -> None:
    assert doubts(settings_from_json(values, VmSettings())) == []
