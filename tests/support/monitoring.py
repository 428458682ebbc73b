"""The package's alert rules and dashboard, as tests read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import vhost_balloon

_FOLDER: Final = Path(vhost_balloon.__file__).with_name("monitoring")

RULES: Final = _FOLDER / "alerts.yml"
RULES_TEXT: Final = RULES.read_text()
ALERTS: Final = re.findall(r"^ +- alert: (\w+)$", RULES_TEXT, re.MULTILINE)
DASHBOARD: Final[dict[str, Any]] = json.loads((_FOLDER / "dashboard.json").read_text())


def expressions() -> list[str]:
    """Return all PromQL of the dashboard."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def filled_in(expression: str, vm: str = "web1") -> str:
    """Replace the variables of an expression, as Grafana does."""
    for name, value in {"$__rate_interval": "1m", "$instance": ".*", "$vm": vm}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression
