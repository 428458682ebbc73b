"""pytest support: the trees that a test needs are there before it runs.

`@pytest.mark.guest` asks for what guests need, `@pytest.mark.rig(TREE, ...)` for other trees, the
fixture systemd_host for its own. All that the chosen tests ask for is fetched before the first of
them: no test's time limit counts then, and pytest captures nothing, so whoever waits sees why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Final, NoReturn

import pytest

from tests.rig.errors import RigUnavailable
from tests.rig.provisioning.packages import SYSTEMD, TREES, Tree, provision
from tests.rig.systemd import SystemdHost

_missing: Final[dict[Tree, str]] = {}
"""Why a tree cannot be had here."""


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Provision what the chosen tests need."""
    if not session.config.option.collectonly:
        _provision(tree for item in session.items for tree in _needed(item))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let no test start without its trees; those of others are not its concern."""
    require_rig(tuple(_needed(item)))


def _needed(item: pytest.Item) -> Iterator[Tree]:
    if item.get_closest_marker("guest"):
        yield from TREES
    if "systemd_host" in getattr(item, "fixturenames", ()):
        yield SYSTEMD
    for mark in item.iter_markers("rig"):
        yield from mark.args


def require_rig(trees: tuple[Tree, ...] = TREES) -> None:
    """Make sure of trees.

    Where this machine cannot have them, the test is skipped and the summary says so, except with
    CI or VHOST_BALLOON_REQUIRE_RIG=1 in the environment: there it fails.
    """
    _provision(trees)
    for tree in trees:
        if tree in _missing:
            refuse(_missing[tree])


def _provision(trees: Iterable[Tree]) -> None:
    """Try to get trees, each of them once in this run."""
    wanted = tuple(tree for tree in dict.fromkeys(trees) if tree not in _missing)
    try:
        provision(wanted)
    except RigUnavailable as error:
        for tree in wanted:
            if not tree.is_there():
                _missing[tree] = error.by_tree.get(tree.name, error.reason)


def required() -> bool:
    """Whether a missing rig is a failure here."""
    return bool(os.environ.get("CI")) or os.environ.get("VHOST_BALLOON_REQUIRE_RIG") == "1"


@pytest.fixture(scope="module")
def systemd_host() -> Iterator[SystemdHost]:
    """Real systemd with the daemon installed, one for the tests of a module."""
    with ExitStack() as stack:
        try:
            host = stack.enter_context(SystemdHost())
        except RigUnavailable as error:
            refuse(error.reason)  # guests may be had all the same
        host.install()
        yield host


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what was not run."""
    if _missing and not required():
        terminalreporter.section("REAL-GUEST TESTS SKIPPED", yellow=True, bold=True)
        for reason in dict.fromkeys(_missing.values()):
            names = ", ".join(tree.name for tree in _missing if _missing[tree] == reason)
            terminalreporter.line(f"This machine cannot have {names}: {reason}", yellow=True)
        terminalreporter.line("Nothing that needs it was shown in this run.", yellow=True)


def refuse(reason: str) -> NoReturn:
    """Skip the test, or fail it where the rig is required."""
    if required():
        pytest.fail(f"the rig is required here but unavailable: {reason}", pytrace=False)
    pytest.skip(f"the rig is unavailable: {reason}")
