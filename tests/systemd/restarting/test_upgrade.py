"""An upgrade to a build with another state version, and back, under a running guest."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.rig.memory import MiB
from tests.rig.provisioning.wheel import SHIPPED, build_wheel
from tests.rig.systemd import SERVICE, WEB1, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.paths import ROOT
from tests.support.restarting import under_systemd
from tests.support.restarting.under_systemd import death
from vhost_balloon.store.record import STATE_VERSION

pytestmark = pytest.mark.guest

NEXT = STATE_VERSION + 1
RENAMED = f"""
def _renamed(areas: Document) -> Document:
    areas["vm"]["halted"] = areas["vm"].pop("paused")
    return areas


MIGRATIONS[{STATE_VERSION}] = _renamed
"""


def module_with(package: Path, text: str) -> Path:
    """Find the one module of a package that contains a text."""
    (found,) = (path for path in package.rglob("*.py") if text in path.read_text())
    return found


def replace(package: Path, old: str, new: str) -> None:
    path = module_with(package, old)
    path.write_text(path.read_text().replace(old, new))


def next_build(folder: Path) -> Path:
    """Build a wheel of the next state version, which renames a member of a document."""
    source = folder / "next"
    source.mkdir()
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    package = source / "vhost_balloon"
    version = "STATE_VERSION: Final = "
    replace(package, f"{version}{STATE_VERSION}\n", f"{version}{NEXT}\n")
    replace(package, '"paused": self.paused', '"halted": self.paused')
    replace(package, 'flag(document["paused"])', 'flag(document["halted"])')
    with module_with(package, "\nMIGRATIONS: Final").open("a") as migrations:
        migrations.write(RENAMED)
    return build_wheel(folder, source)


def test_upgrade_and_downgrade_under_a_running_guest(systemd_host: SystemdHost) -> None:
    host = systemd_host
    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        this, later = build_wheel(Path(old)), next_build(Path(new))
        with under_systemd.watched(host) as served:

            def restart() -> str:
                """Restart the daemon; return what it logs."""
                logged = len(host.journal())
                with death(host) as end:
                    host.systemctl("restart", SERVICE)
                    assert end.came(10)
                served.answers()
                assert host.show(SERVICE, "NRestarts") == "0", "it does not crash"
                return host.journal()[logged:]

            served.check_discards()
            served.pause(True)
            host.install(later)
            assert f"record of version {STATE_VERSION} was read as {NEXT}" in restart()
            served.check()
            served.pause(True)
            assert "was read as" not in restart(), "the record was rewritten"
            served.check()

            # Back: the state may mean more than this version understands.
            host.install(this)
            assert f"record of version {NEXT} was read as {STATE_VERSION}" in restart()
            vm = served.vm()
            assert (vm["attached"], vm["target"]) == (True, served.target)
            assert vm["pause-reasons"] == ["foreign-state"]
            served.order_target(vm["actual"] - 32 * MiB)
            served.free()
            wait_until(lambda: served.vm()["actual"] == served.target, 30)
            after = served.vm()
            assert after["freed-bytes"] == vm["freed-bytes"], "nothing is discarded"
            assert after["refused-bytes"]["foreign-state"] >= 32 * MiB
            served.stop_and_cont()

            # That stays so for this front end, whichever version serves it.
            host.install(later)
            restart()
            assert served.vm()["pause-reasons"] == ["foreign-state"]
            served.guest.reset()
            wait_until(lambda: bool(served.vm()["driver-ready"]), 30)
        host.wait_logged(f"{WEB1.vm}: front end resumed")
