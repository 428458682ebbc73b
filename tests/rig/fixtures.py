"""pytest support: tests that need a real guest call require_rig() first.

In a conftest: `from tests.rig.fixtures import pytest_terminal_summary, rig  # noqa: F401`, and
mark such tests with `@pytest.mark.guest`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final, NoReturn

import pytest

from .errors import RigUnavailable
from .packages import SYSTEMD, TREES, Tree, provision
from .systemd import SystemdHost

_missing: Final[list[str]] = []


def require_rig(trees: tuple[Tree, ...] = TREES) -> None:
    """Provision the rig.

    Where this machine cannot have it, the test is skipped and the summary says so, except with
    CI or VHOST_BALLOON_REQUIRE_RIG=1 in the environment: there it fails.
    """
    if _missing:
        _refuse(_missing[0])
    try:
        provision(trees)
    except RigUnavailable as error:
        _missing.append(error.reason)
        _refuse(error.reason)


def required() -> bool:
    """Whether a missing rig is a failure here."""
    return bool(os.environ.get("CI")) or os.environ.get("VHOST_BALLOON_REQUIRE_RIG") == "1"


@pytest.fixture(scope="session")
def rig() -> None:
    """The rig is provisioned."""
    require_rig()


@pytest.fixture(scope="module")
def systemd_host() -> Iterator[SystemdHost]:
    """Real systemd with the daemon installed, one for the tests of a module."""
    require_rig((SYSTEMD,))
    with ExitStack() as stack:
        try:
            host = stack.enter_context(SystemdHost())
        except RigUnavailable as error:
            _refuse(error.reason)  # guests may be had all the same
        host.install()
        yield host


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly that no real guest was run."""
    if _missing and not required():
        terminalreporter.section("REAL-GUEST TESTS SKIPPED", yellow=True, bold=True)
        terminalreporter.line(f"This machine cannot have the rig: {_missing[0]}", yellow=True)
        terminalreporter.line("Nothing was shown with a real guest in this run.", yellow=True)


def _refuse(reason: str) -> NoReturn:
    if required():
        pytest.fail(f"the rig is required here but unavailable: {reason}", pytrace=False)
    pytest.skip(f"the rig is unavailable: {reason}")
