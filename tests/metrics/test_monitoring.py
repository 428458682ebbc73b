"""The shipped alert rules and dashboard: promtool accepts them, and the alerts fire as intended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.rig.prometheus import promtool
from tests.rig.provisioning.packages import PROMETHEUS
from tests.support.control_client import attach
from tests.support.fakes.policy_documents import POLICY_MODES, POLICY_ON
from tests.support.monitoring import (
    ALERTS,
    DASHBOARD,
    RULES,
    RULES_TEXT,
    Series,
    costs,
    expressions,
    filled_in,
    ordered,
    paused,
    policed,
    refused,
    stale,
    state,
    stuck,
)
from tests.support.scrapes import exposition, no_vms, two_vms
from vhost_balloon.containment import InternalErrors
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.figures.refusal import EVERY_REASON, PAUSE_REASONS
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.metrics.exposition import Exposition
from vhost_balloon.metrics.families import HubErrorCollector
from vhost_balloon.metrics.policy_families import PolicyCollector

METRIC: Final = re.compile(r"\b(?:vhost_balloon|process)_\w+\b")
needs_promtool = pytest.mark.rig(PROMETHEUS)

LABEL: Final = re.compile(r'\b(state|reason)(=~|!~|=)"([^"]+)"')


async def known_names() -> set[str]:
    """All names of series in a scrape."""
    errors = InternalErrors()
    policy = PolicyCollector(lambda: POLICY_ON, POLICY_MODES)
    rendered = Exposition(no_vms, [HubErrorCollector(errors), policy])
    body, _ = await rendered.render("")
    types = re.findall(rb"^# TYPE (\w+) (\w+)$", body, re.MULTILINE)
    names = {name.decode() for name, _ in types}
    histograms = {name.decode() for name, kind in types if kind == b"histogram"}
    return names | {name + end for name in histograms for end in ("_bucket", "_sum", "_count")}


# Names


async def test_every_metric_that_is_queried_exists() -> None:
    known = await known_names()
    asked = {name for text in (RULES_TEXT, *expressions()) for name in METRIC.findall(text)}
    assert len(asked) > 25
    assert asked <= known
    variables = DASHBOARD["templating"]["list"]
    assert {name for v in variables for name in METRIC.findall(str(v["query"]))} <= known


def test_every_state_and_reason_that_is_queried_exists() -> None:
    known = {
        "state": {state.value for state in VmState},
        "reason": {*EVERY_REASON, *PAUSE_REASONS, *(reason.value for reason in Reason)},
    }
    asked = [match for text in (RULES_TEXT, *expressions()) for match in LABEL.findall(text)]
    assert len(asked) >= 5
    for label, _, words in asked:
        assert set(words.split("|")) <= known[label]


def test_every_alert_has_a_severity_a_summary_and_a_description() -> None:
    rules = re.split(r"^ +- alert: ", RULES_TEXT, flags=re.MULTILINE)[1:]
    assert len(rules) == len(ALERTS) == len(set(ALERTS))
    for rule in rules:
        assert re.search(r"^ +severity: (critical|warning)$", rule, re.MULTILINE)
        assert re.search(r"^ +summary: .{20,}", rule, re.MULTILINE)
        assert re.search(r"^ +description: >-\n", rule, re.MULTILINE)
        labels = set(re.findall(r"\$labels\.(\w+)", rule))
        assert labels <= {"instance", "vm", "queue", "reason", "where"}
        assert ("vm" in labels) == (not rule.startswith(OF_THE_HOST))


# Rules

OF_THE_HOST: Final = (
    "VhostBalloonDown",
    "VhostBalloonHubInternalError",
    "VhostBalloonHostShort",
    "VhostBalloonReclaimImpossible",
    "VhostBalloonPolicyBlind",
)
VM: Final = 'job="vhost-balloon",instance="host:9100",vm="web1"'
UP: Final = "vhost_balloon_up"
INTERNAL_ERRORS: Final = 'vhost_balloon_internal_errors_total{where="events"}'
HUB_ERRORS: Final = 'vhost_balloon_hub_internal_errors_total{where="vm"}'
RING_ERRORS: Final = 'vhost_balloon_ring_errors_total{queue="inflate",reason="head"}'
AMBIGUOUS: Final = "vhost_balloon_queue_map_ambiguous"

FIRING: Final[list[tuple[str, str, Series]]] = [
    ("VhostBalloonVmDown", "3m", {UP: "0x200"}),
    ("VhostBalloonGuestStuck", "6m", stuck(connected=True)),
    ("VhostBalloonPredecessorStuck", "2m", stuck(connected=False)),
    ("VhostBalloonInert", "1m", state("inert")),
    ("VhostBalloonGuestOutOfMemory", "2m", state("out-of-memory")),
    ("VhostBalloonStatisticsStale", "3m", stale(10, "0+15x200")),
    ("VhostBalloonStatisticsStale", "45m", stale(300, "0+15x200")),
    ("VhostBalloonRingStopped", "5m", {RING_ERRORS: "0x8 1x200"}),
    ("VhostBalloonRingStopped", "50m", {RING_ERRORS: "0x8 1x200"}),
    ("VhostBalloonInternalError", "5m", {INTERNAL_ERRORS: "0x8 1x200"}),
    ("VhostBalloonQueueNumberingAmbiguous", "2m", {AMBIGUOUS: "1x200"}),
    ("VhostBalloonReportingRefused", "20m", refused("hugetlb", "0+4x200")),
    ("VhostBalloonReportingRefused", "20m", refused("outside-memory", "0+1x200")),
    ("VhostBalloonPinStatusUnknown", "3m", paused("pins-unknown")),
    ("VhostBalloonResidentAboveUse", "20m", costs(resident=900, actual=1024, free=800)),
    ("VhostBalloonResidentAboveUse", "20m", costs(resident=900, actual=512, free=100)),
    ("VhostBalloonPolicyStuck", "45m", ordered("stuck", "0x8 1x50 2x50 3x100")),
]
QUIET: Final[list[tuple[str, str, Series]]] = [
    ("VhostBalloonVmDown", "1m", {UP: "0x200"}),
    ("VhostBalloonVmDown", "40m", {UP: "1x200"}),
    ("VhostBalloonVmDown", "40m", {UP: "1x10 0x2 1x200"}),
    ("VhostBalloonGuestStuck", "4m", stuck(connected=True)),
    ("VhostBalloonGuestStuck", "20m", stuck(connected=False)),
    ("VhostBalloonGuestStuck", "20m", stuck(connected=True) | state("moving")),
    ("VhostBalloonPredecessorStuck", "30s", stuck(connected=False)),
    ("VhostBalloonPredecessorStuck", "20m", stuck(connected=True)),
    ("VhostBalloonPredecessorStuck", "20m", stuck(connected=False) | state("disconnected")),
    ("VhostBalloonInert", "20m", state("no-driver")),
    ("VhostBalloonGuestOutOfMemory", "30s", state("out-of-memory")),
    ("VhostBalloonGuestOutOfMemory", "20m", state("stuck")),
    ("VhostBalloonStatisticsStale", "1m", stale(10, "0+15x200")),
    ("VhostBalloonStatisticsStale", "40m", stale(10, "9x200")),
    ("VhostBalloonStatisticsStale", "10m", stale(300, "0+15x200")),
    ("VhostBalloonStatisticsStale", "40m", stale(0, "0+15x200")),
    ("VhostBalloonStatisticsStale", "40m", stale(10, "0+15x200", driver=False)),
    ("VhostBalloonRingStopped", "1m", {RING_ERRORS: "0x8 1x200"}),
    ("VhostBalloonRingStopped", "40m", {RING_ERRORS: "7x200"}),
    ("VhostBalloonInternalError", "40m", {INTERNAL_ERRORS: "7x200"}),
    ("VhostBalloonQueueNumberingAmbiguous", "2m", {AMBIGUOUS: "0x200"}),
    ("VhostBalloonReportingRefused", "9m", refused("hugetlb", "0+4x200")),
    *(("VhostBalloonReportingRefused", at, refused("late", "0x20 3x200")) for at in ("8m", "12m")),
    ("VhostBalloonReportingRefused", "40m", refused("paused", "0+4x200")),
    ("VhostBalloonReportingRefused", "40m", refused("discard-never", "0+4x200")),
    ("VhostBalloonPinStatusUnknown", "1m", paused("pins-unknown")),
    ("VhostBalloonPinStatusUnknown", "40m", paused("operator")),
    ("VhostBalloonResidentAboveUse", "14m", costs(resident=900, actual=1024, free=800)),
    ("VhostBalloonResidentAboveUse", "40m", costs(resident=450, actual=1024, free=800)),
    ("VhostBalloonResidentAboveUse", "40m", costs(resident=300, actual=512, free=100)),
    ("VhostBalloonResidentAboveUse", "40m", costs(resident=1024, actual=1024, free=10)),
    ("VhostBalloonPolicyStuck", "45m", ordered("stuck", "0x8 1x50 2x150")),
    ("VhostBalloonPolicyStuck", "45m", ordered("relief", "0+1x200")),
]
SCRAPED: Final = 'up{job="vhost-balloon",instance="host:9100"}'
WITHOUT_THE_LOCK: Final = {
    'vhost_balloon_policy_host_readable{job="vhost-balloon",instance="host:9100"}': "1x200"
}
OF_THE_HOST_CASES: Final = [
    ("VhostBalloonDown", "3m", {SCRAPED: "0x200"}, 1),
    ("VhostBalloonDown", "1m", {SCRAPED: "0x200"}, 0),
    ("VhostBalloonDown", "40m", {SCRAPED: "1x200"}, 0),
    ("VhostBalloonDown", "40m", {SCRAPED: "1x10 0x2 1x200"}, 0),
    ("VhostBalloonDown", "3m", {}, 1),
    ("VhostBalloonHubInternalError", "5m", {HUB_ERRORS: "0x8 1x200"}, 1),
    ("VhostBalloonHubInternalError", "50m", {HUB_ERRORS: "0x8 1x200"}, 1),
    ("VhostBalloonHubInternalError", "40m", {HUB_ERRORS: "7x200"}, 0),
    ("VhostBalloonHostShort", "2m", policed(available=900, spare=100), 1),
    ("VhostBalloonHostShort", "30s", policed(available=900, spare=100), 0),
    ("VhostBalloonHostShort", "40m", policed(available=1100, spare=100), 0),
    ("VhostBalloonHostShort", "40m", {}, 0),
    ("VhostBalloonReclaimImpossible", "2m", policed(available=1900, spare=0), 1),
    ("VhostBalloonReclaimImpossible", "30s", policed(available=1900, spare=0), 0),
    ("VhostBalloonReclaimImpossible", "40m", policed(available=1900, spare=20), 0),
    ("VhostBalloonReclaimImpossible", "40m", policed(available=2100, spare=0), 0),
    ("VhostBalloonPolicyBlind", "2m", policed(readable=False), 1),
    ("VhostBalloonPolicyBlind", "2m", WITHOUT_THE_LOCK, 1),
    ("VhostBalloonPolicyBlind", "30s", policed(readable=False), 0),
    ("VhostBalloonPolicyBlind", "40m", policed(readable=True), 0),
]


def of_the_vm(name: str) -> str:
    """A series' name with the labels that a scrape gives it."""
    return f"{name[:-1]},{VM}}}" if name.endswith("}") else f"{name}{{{VM}}}"


def check(tmp_path: Path, alert: str, at: str, series: Series, firing: list[str]) -> None:
    """Let promtool check for which VMs the alert fires."""
    expression = f'sum by (vm) (ALERTS{{alertname="{alert}",alertstate="firing"}})'
    samples = [{"labels": labels, "value": 1} for labels in firing]
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": at, "exp_samples": samples}],
    }
    path = tmp_path / "test.yml"  # JSON is YAML
    path.write_text(
        json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": [test]})
    )
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout


def test_every_alert_is_tested() -> None:
    fires = {alert for alert, _, _ in FIRING} | {case[0] for case in OF_THE_HOST_CASES if case[3]}
    rests = {alert for alert, _, _ in QUIET} | {
        case[0] for case in OF_THE_HOST_CASES if not case[3]
    }
    assert fires == rests == set(ALERTS)


@needs_promtool
@pytest.mark.parametrize(("alert", "at", "series"), FIRING)
def test_alert_fires(tmp_path: Path, alert: str, at: str, series: Series) -> None:
    named = {of_the_vm(name): values for name, values in series.items()}
    check(tmp_path, alert, at, named, ['{vm="web1"}'])


@needs_promtool
@pytest.mark.parametrize(("alert", "at", "series"), QUIET)
def test_alert_is_quiet(tmp_path: Path, alert: str, at: str, series: Series) -> None:
    check(tmp_path, alert, at, {of_the_vm(name): values for name, values in series.items()}, [])


@needs_promtool
@pytest.mark.parametrize(("alert", "at", "series", "firing"), OF_THE_HOST_CASES)
def test_alert_of_the_host(
    tmp_path: Path, alert: str, at: str, series: Series, firing: int
) -> None:
    check(tmp_path, alert, at, series, ["{}"] * firing)


@needs_promtool
def test_rules_are_clean() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout
    assert f"SUCCESS: {len(ALERTS)} rules found" in done.stdout


@needs_promtool
async def test_metrics_are_clean() -> None:
    vms = two_vms()
    attach(vms["web1"], target=1, resident=1, stats_age=1.0)
    body, _ = await exposition(vms).render("")
    done = promtool("check", "metrics", text=body.decode())
    assert (done.returncode, done.stdout) == (0, "")


# Dashboard


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


@needs_promtool
def test_expressions_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": filled_in(expression)}
        for number, expression in enumerate(expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", "--lint=none", path)
    assert done.returncode == 0, done.stdout


def test_each_vm_has_a_row_with_its_main_metrics() -> None:
    rows = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    repeated = [row for row in rows if row.get("repeat") == "vm"]
    assert [row["title"] for row in repeated] == ["$vm"]
    assert DASHBOARD["panels"].index(repeated[0]) > 0
    below = DASHBOARD["panels"][DASHBOARD["panels"].index(repeated[0]) + 1 :]
    text = json.dumps(below)
    for name in ("policy_reason", "policy_demand_bytes",
                 "target_bytes", "actual_bytes", "guest_resident_bytes", "reported_bytes_total",
                 "discard_seconds_bucket", "guest_stat_available_bytes", "state"):  # fmt: skip
        assert f"vhost_balloon_{name}{{" in text
    for panel in below:
        for target in panel["targets"]:
            assert 'vm=~"$vm"' in target["expr"]
    (heatmap,) = [panel for panel in below if panel["type"] == "heatmap"]
    assert [target["format"] for target in heatmap["targets"]] == ["heatmap"]


def test_dashboard_can_be_imported_anywhere() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables.keys() == {"datasource", "instance", "vm"}
    assert variables["vm"]["multi"]
    assert variables["vm"]["includeAll"]
    assert "id" not in DASHBOARD
    sources = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert sources == {"${datasource}"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_do_not_overlap_and_have_descriptions() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert not taken & cells
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        ids = [target["refId"] for target in panel["targets"]]
        assert len(ids) == len(set(ids))
