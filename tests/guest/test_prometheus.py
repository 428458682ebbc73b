"""A real Prometheus server watches a real guest through the daemon."""

from __future__ import annotations

import socket
import urllib.request
from typing import Final

import pytest

from tests.rig.daemon import Daemon
from tests.rig.inside import workload
from tests.rig.memory import GiB, MiB
from tests.rig.prometheus import Prometheus, promtool
from tests.rig.provisioning.packages import PROMETHEUS
from tests.rig.waiting import wait_until
from tests.support.monitoring import ALERTS, RULES, expressions, filled_in
from tests.support.paths import TLS
from tests.support.vms.guests import Attached, attached
from vhost_balloon.metrics.accept import OPENMETRICS, negotiate
from vhost_balloon.metrics.http import RequestReader

pytestmark = pytest.mark.rig(PROMETHEUS)

SCRAPED: Final = 20.0
"""Seconds: Prometheus first looks at its targets after some five."""


def metrics_address(daemon: Daemon) -> str:
    """From the daemon's log, as it was started with port 0."""
    match = daemon.wait_logged(r"metrics on https?://(\S+)/metrics")
    assert match is not None, daemon.log()
    return match[1]


def wait_value(server: Prometheus, expression: str, value: float | None) -> None:
    """Wait until a query gives a value, or nothing."""
    seen: list[float | None] = []

    def arrived() -> bool:
        seen.append(server.value(expression))
        return seen[-1] == value

    try:
        wait_until(arrived, SCRAPED)
    except AssertionError:
        raise AssertionError(f"{expression} is {seen[-1]}, not {value}") from None


def of_vm(name: str) -> str:
    return f'vhost_balloon_{name}{{vm="vm"}}'


def in_state(state: str) -> str:
    return f'vhost_balloon_state{{vm="vm",state="{state}"}}'


def inflates(both: Attached, server: Prometheus) -> None:
    """The guest gives up half of its memory; every figure follows."""
    wait_value(server, of_vm("actual_bytes"), GiB)
    wait_value(server, of_vm("target_bytes"), GiB)
    took = workload.set_target(both.qmp, GiB // 2)
    wait_value(server, of_vm("actual_bytes"), GiB // 2)
    wait_value(server, in_state("done"), 1)
    assert server.value(of_vm("target_bytes")) == GiB // 2
    assert server.value(of_vm("inflated_bytes_total")) == GiB // 2
    assert (server.value(of_vm("requests_total").replace("}", ',queue="inflate"}')) or 0) > 100
    assert (server.value(of_vm("discard_seconds_count")) or 0) > 100
    path = server.history(of_vm("actual_bytes"), seconds=round(took) + 15)
    assert path == sorted(path, reverse=True)
    assert (path[0], path[-1]) == (GiB, GiB // 2)
    print(f"inflating took {took:.1f} s; Prometheus saw {[round(x / MiB) for x in path]} MiB")


def reports(both: Attached, server: Prometheus) -> None:
    """Freed memory comes back, and shows as such."""
    workload.fill(both.guest, 200 * MiB)
    workload.free(both.guest)
    wait_until(lambda: (server.value(of_vm("reported_bytes_total")) or 0) > 150 * MiB, SCRAPED)
    wait_until(
        lambda: (
            server.value(of_vm("guest_resident_bytes"))
            == pytest.approx(both.guest.resident(), abs=8 * MiB)
        ),
        SCRAPED,
    )
    assert (server.value(of_vm("freed_bytes_total")) or 0) > 100 * MiB
    assert server.value(f"sum({of_vm('refused_bytes_total')})") == 0


def says_what_the_guest_says(both: Attached, server: Prometheus) -> None:
    total = both.guest_stats()["stats"]["stat-total-memory"]
    wait_value(server, of_vm("guest_stat_memory_bytes"), total)
    assert len(server.query('{__name__=~"vhost_balloon_guest_stat_.*"}')) == 16
    assert (server.value(of_vm("guest_stats_age_seconds")) or 99) < 5


def answers_the_dashboard(server: Prometheus) -> None:
    """Each panel's expression is understood, and all but those of trouble, and of the hub's policy,
    have data."""
    empty = {text for text in expressions() if not server.query(filled_in(text, "vm"))}
    quiet = ("> 0", "reason", "ambiguous", "+ 1 == 1", "balloon_policy_")
    assert {text for text in empty if not any(word in text for word in quiet)} == set()


def is_calm(server: Prometheus) -> None:
    """The rules are evaluated, and none has anything to say about a healthy guest."""
    rules = server.rules()
    assert [rule["name"] for rule in rules] == ALERTS
    wait_until(lambda: all(rule["health"] == "ok" for rule in server.rules()), SCRAPED)
    assert [alert for rule in server.rules() for alert in rule["alerts"]] == []


@pytest.mark.guest
def test_prometheus_sees_what_a_guest_does() -> None:
    with attached("--metrics-address=:0", "--stats-interval=1") as both:
        address = metrics_address(both.daemon)
        with Prometheus(address, rules=(RULES,)) as server:
            wait_value(server, "up", 1)
            inflates(both, server)
            reports(both, server)
            says_what_the_guest_says(both, server)
            answers_the_dashboard(server)
            is_calm(server)
            print(f"a scrape took {(server.value('scrape_duration_seconds') or 0) * 1000:.1f} ms")
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                checked = promtool("check", "metrics", text=answer.read().decode())
            assert (checked.returncode, checked.stdout) == (0, "")
            # The guest goes: its figures end, those of the VM go on.
            freed = server.value(of_vm("freed_bytes_total"))
            both.guest.close()
            wait_value(server, of_vm("connected"), 0)
            wait_value(server, of_vm("actual_bytes"), None)
            wait_value(server, in_state("disconnected"), 1)
            assert server.query('{__name__=~"vhost_balloon_guest_.*"}') == []
            assert (server.value(of_vm("freed_bytes_total")) or 0) >= (freed or 0) > 0
            both.daemon.terminate()
            wait_value(server, "up", 0)


def test_prometheus_over_tls_with_a_client_certificate() -> None:
    with Daemon(
        "--metrics-address=localhost:0",
        f"--metrics-certificate={TLS}/first.pem",
        f"--metrics-key={TLS}/first.key.pem",
        f"--metrics-client-ca={TLS}/second.pem",
    ) as daemon:
        tls = {
            "ca_file": f"{TLS}/first.pem",
            "cert_file": f"{TLS}/second.pem",
            "key_file": f"{TLS}/second.key.pem",
        }
        with Prometheus(metrics_address(daemon), scheme="https", tls=tls) as server:
            wait_value(server, "up", 1)
            wait_value(server, of_vm("connected"), 0)


def test_prometheus_asks_for_openmetrics() -> None:
    """And in a way that is understood: it would be content with text, too."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(SCRAPED)
        with Prometheus(f"127.0.0.1:{target.getsockname()[1]}"):
            client, _ = target.accept()
            with client:
                client.settimeout(SCRAPED)
                reader, request = RequestReader(), None
                while request is None:
                    data = client.recv(65536)
                    assert data
                    request = reader.feed(data)
    assert (request.method, request.path) == ("GET", "/metrics")
    assert negotiate(request.accept) is OPENMETRICS
    print(f"Prometheus accepts {request.accept}")
