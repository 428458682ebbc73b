"""pytest support: provisions the trees that the selected tests need.

`@pytest.mark.guest` requests the trees of a guest, `@pytest.mark.rig(TREE, ...)` others, and the
fixture systemd_host its own. All are fetched before the first test, outside any test's time limit
and while pytest does not capture output, so the user sees the reason for the wait. Among several
pytest-xdist workers, one fetches while the others wait for the lock; the summary covers them all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Final, NoReturn

import pytest

from tests.rig.errors import RigUnavailable
from tests.rig.provisioning.packages import SYSTEMD, TREES, Tree, provision
from tests.rig.systemd import SystemdHost

_missing: Final[dict[str, str]] = {}
"""Name of a tree -> why it cannot be provisioned here. At the end, includes what workers missed."""
_MISSING: Final = "missing trees"


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Provision the trees that the selected tests need."""
    if not session.config.option.collectonly:
        _provision(tree for item in session.items for tree in _needed(item))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose trees are missing."""
    require_rig(tuple(_needed(item)))


def needs_rig(item: pytest.Item) -> bool:
    """Whether a test needs any tree."""
    return any(_needed(item))


def _needed(item: pytest.Item) -> Iterator[Tree]:
    if item.get_closest_marker("guest"):
        yield from TREES
    if "systemd_host" in getattr(item, "fixturenames", ()):
        yield SYSTEMD
    for mark in item.iter_markers("rig"):
        yield from mark.args


def require_rig(trees: tuple[Tree, ...] = TREES) -> None:
    """Provision trees.

    Where that is impossible, skip the test and say so in the summary, or fail it if CI or
    VHOST_BALLOON_REQUIRE_RIG=1 is in the environment.
    """
    _provision(trees)
    for tree in trees:
        if tree.name in _missing:
            refuse(_missing[tree.name])


def _provision(trees: Iterable[Tree]) -> None:
    """Try to provision trees, each once per run."""
    wanted = tuple(tree for tree in dict.fromkeys(trees) if tree.name not in _missing)
    try:
        provision(wanted)
    except RigUnavailable as error:
        for tree in wanted:
            if not tree.is_there():
                _missing[tree.name] = error.by_tree.get(tree.name, error.reason)


def required() -> bool:
    """Whether a missing rig is a failure."""
    return bool(os.environ.get("CI")) or os.environ.get("VHOST_BALLOON_REQUIRE_RIG") == "1"


@pytest.fixture(scope="module")
def systemd_host() -> Iterator[SystemdHost]:
    """Real systemd with the daemon installed, shared by the tests of a module."""
    with ExitStack() as stack:
        try:
            host = stack.enter_context(SystemdHost())
        except RigUnavailable as error:
            refuse(error.reason)  # guests may still work
        host.install()
        yield host


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a pytest-xdist worker, hand over what is missing."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_MISSING] = _missing


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect what a worker handed over; one that crashed did not."""
    _missing.update(getattr(node, "workeroutput", {}).get(_MISSING, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report prominently which tests did not run."""
    if _missing and not required():
        terminalreporter.section("REAL-GUEST TESTS SKIPPED", yellow=True, bold=True)
        for reason in dict.fromkeys(_missing.values()):
            names = ", ".join(name for name in _missing if _missing[name] == reason)
            terminalreporter.line(
                f"{names} cannot be provisioned on this machine: {reason}", yellow=True
            )
        terminalreporter.line("Nothing that needs the rig was tested in this run.", yellow=True)


def refuse(reason: str) -> NoReturn:
    """Skip the test, or fail it if the rig is required."""
    if required():
        pytest.fail(f"the rig is required here but unavailable: {reason}", pytrace=False)
    pytest.skip(f"the rig is unavailable: {reason}")
