"""A real Prometheus server, and its promtool: Debian's packages, unpacked."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tests.rig import process
from tests.rig.errors import RigError
from tests.rig.provisioning.packages import PROMETHEUS
from tests.rig.waiting import wait_until

START_SECONDS: Final = 30.0
_LISTENS: Final = re.compile(r'msg="Listening on" address=(127\.0\.0\.1:\d+)')


class PrometheusError(RigError):
    """The server did not start, or answered with an error; the text carries its log."""


def program(name: str) -> list[str]:
    """Command of prometheus or promtool, run by its own dynamic linker with its own libraries."""
    tree = PROMETHEUS.folder
    return [
        f"{tree}/usr/lib64/ld-linux-x86-64.so.2",
        *("--library-path", f"{tree}/usr/lib/x86_64-linux-gnu"),
        f"{tree}/usr/bin/{name}",
    ]


def promtool(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run promtool with text as its input; stdout includes its stderr."""
    return subprocess.run(
        [*program("promtool"), *map(str, arguments)],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


class Prometheus(process.Started):
    """A server that scrapes one target every second; a context manager that ends it.

    Args:
        target: HOST:PORT, scraped as the job "vhost-balloon".
        rules: rule files.
        scheme, tls: as in a scrape_config.

    Attributes:
        url: address of its HTTP API.
    """

    def __init__(
        self,
        target: str,
        *,
        rules: tuple[Path, ...] = (),
        scheme: str = "http",
        tls: dict[str, Any] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rig-prometheus-"))
        self.url = ""
        job: dict[str, Any] = {
            "job_name": "vhost-balloon",
            "scheme": scheme,
            "static_configs": [{"targets": [target]}],
        }
        if tls is not None:
            job["tls_config"] = tls
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path.absolute()) for path in rules],
            "scrape_configs": [job],
        }
        # JSON is YAML.
        (self.folder / "prometheus.yml").write_text(json.dumps(configuration))
        self._process: subprocess.Popen[bytes] | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if value is not None:
            value.add_note(f"--- prometheus.log\n{self.log()}")
        super().__exit__(kind, value, tb)

    def close(self) -> None:
        """Kill it and delete its folder; may be called twice."""
        if self._process is not None and self._process.poll() is None:
            process.kill(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        return process.text_tail(self.folder / "prometheus.log", 20000)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query: elements with "metric" and "value", or "values", of time and text."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def value(self, expression: str) -> float | None:
        """Return the value of a query with at most one element, None without one."""
        found = self.query(expression)
        if len(found) > 1:
            raise PrometheusError(f"{expression} has {len(found)} elements")
        return float(found[0]["value"][1]) if found else None

    def history(self, selector: str, seconds: int) -> list[float]:
        """Return the samples of a single series from the last seconds."""
        found = self.query(f"{selector}[{seconds}s]")
        return [float(value) for _, value in found[0]["values"]] if found else []

    def rules(self) -> list[dict[str, Any]]:
        """The rules that it evaluates: "name", "health", "alerts", ..."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **arguments: object) -> Any:
        query = urllib.parse.urlencode(arguments)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=20) as answer:
                return json.load(answer)["data"]
        except OSError as error:  # includes HTTP errors
            raise PrometheusError(f"{path} {arguments}: {error}\n{self.log()}") from error

    def start(self) -> None:
        """Start it and wait until it answers. Raises PrometheusError."""
        command = [
            *program("prometheus"),
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            "--web.listen-address=127.0.0.1:0",
        ]
        with (self.folder / "prometheus.log").open("wb") as log:
            self._process = process.spawn(command, output=log)
        wait_until(
            self._ready, START_SECONDS, lambda: PrometheusError(f"it does not start\n{self.log()}")
        )

    def _ready(self) -> bool:
        match = _LISTENS.search(self.log())
        if match is None:
            return False
        self.url = f"http://{match[1]}"
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False
