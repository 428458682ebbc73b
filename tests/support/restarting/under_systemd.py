"""A real guest on a daemon under a real systemd, observed across the daemon's restarts."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.rig.errors import GuestError, QMPError
from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.systemd import SERVICE, VENV, WEB1, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.helpers import readable
from tests.support.restarting.dying import FOLDER, ORDER

PATIENCE: Final = 60.0
_PROGRAM: Final = f"{VENV}/dying.py"
_DYING: Final = f"""[Service]
Environment=MANY_CRASHES=1
BindPaths={FOLDER}
ExecStart=
ExecStart={VENV}/bin/python {_PROGRAM} --name=%i $VHOST_BALLOON_OPTIONS
"""

STRANGE: Final = ("balloon does nothing", "cannot be used", "was lost", "start anew", "refused")
"""What the daemon's log must not say while all goes well."""

FIGURES: Final = (
    "reported-bytes",
    "inflated-bytes",
    "deflated-bytes",
    "freed-bytes",
    "front-end-errors",
    "config-changes",
)


@contextmanager
def dying(host: SystemdHost) -> Iterator[None]:
    """Run dying.py in the daemon's place; order() tells it where to end."""
    host.write(_PROGRAM, Path(__file__).with_name("dying.py").read_text())
    host.run("mkdir", "--parents", "--mode=0777", FOLDER)
    host.drop_in(SERVICE, _DYING, "dying")
    yield
    host.drop_in(SERVICE, "", "dying")


def order(host: SystemdHost, step: str, when: str, count: int, how: str) -> None:
    """Have the daemon end at the count-th call of a step of dying.STEPS."""
    new = host.path(f"{ORDER}.new")
    new.write_text(f"{step} {when} {count} {how}")
    new.rename(host.path(str(ORDER)))


def figures(vm: dict[str, Any]) -> dict[str, int]:
    """Return the monotonic counters of an entry of query-vms."""
    found = {name: int(vm[name]) for name in FIGURES}
    found["ring-errors"] = sum(sum(by.values()) for by in vm["ring-errors"].values())
    for name in ("refused-bytes", "requests"):
        found |= {f"{name} {key}": value for key, value in vm[name].items()}
    return found


@dataclass
class Watched:
    """A guest, and what has to stay as it is whatever becomes of its daemon.

    target: what was ordered last (bytes). pauses: seconds that the guest was without service, by
    what ended the daemon; each until the guest has answered a question of the new one.
    """

    host: SystemdHost
    guest: Guest
    target: int = GiB
    paused: bool = False
    pauses: list[tuple[float, str]] = field(default_factory=list)
    _floor: dict[str, int] = field(default_factory=dict)

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run a command, however often the daemon ends meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.host.qmp() as qmp:
                    return qmp.execute(command, arguments)
            except (OSError, GuestError, QMPError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def vm(self) -> dict[str, Any]:
        """What the daemon knows of the VM; its counters are never less than before."""
        vm: dict[str, Any] = self.ask("query-vms")[0]
        now = figures(vm)
        less = {
            name: (was, now.get(name))
            for name, was in self._floor.items()
            if now.get(name, 0) < was
        }
        assert not less, f"counters went back: {less}"
        self._floor = now
        return vm

    def order_target(self, size: int) -> None:
        self.ask("balloon", {"value": size})
        self.target = size

    def pause(self, paused: bool) -> None:
        self.ask("balloon-pause" if paused else "balloon-resume")
        self.paused = paused

    # What has to work

    def answers(self) -> float:
        """Wait until the guest has answered the daemon's question; when it had."""
        before = int(time.time())
        assert self.ask("balloon-stats")["last-update"] >= before, "a fresh sample"
        return time.monotonic()

    def check(self) -> None:
        """All is as it was, and everything works."""
        vm = self.vm()
        assert vm["attached"]
        assert vm["state"] != "inert"
        assert (vm["target"], vm["reporting-paused"]) == (self.target, self.paused)
        assert vm["pause-reasons"] == (["operator"] if self.paused else [])
        if self.paused:
            self.pause(False)
        self.check_discards()

    def check_discards(self) -> None:
        """The guest takes up a target, and reports what it has freed."""
        self.order_target(GiB)
        before = self.vm()
        self._wait(before, lambda vm, grown: vm["actual"] == GiB)
        self.free()  # what it has not used since it was last reported is discarded already
        before = self.vm()
        self.order_target(GiB - 64 * MiB)
        self._wait(
            before,
            lambda vm, grown: (
                vm["actual"] == self.target
                # What waited too long for this machine's processors is acknowledged alone.
                and grown["inflated-bytes"] + grown["late"] >= 64 * MiB
                and grown["freed-bytes"] >= 4 * MiB
            ),
        )
        self.free()
        self._wait(before, lambda vm, grown: grown["reported-bytes"] > 0)

    def _wait(
        self, before: dict[str, Any], done: Callable[[dict[str, Any], dict[str, int]], bool]
    ) -> None:
        """Wait until done(vm, by how much its figures have grown since before)."""

        def looked() -> bool:
            vm = self.vm()
            grown = {name: vm[name] - before[name] for name in FIGURES}
            late, was = (found["refused-bytes"].get("late", 0) for found in (vm, before))
            grown["late"] = late - was
            return done(vm, grown)

        try:
            wait_until(looked, PATIENCE)
        except AssertionError as error:
            error.add_note(f"before: {before}\nnow: {self.vm()}\n{self.host.journal()[-2000:]}")
            raise

    def free(self, size: int = 40) -> None:
        """Have the guest use so many MiB and free them: it reports that within two seconds.

        Linux reports whole free blocks of 2 MiB, each once while it stays free. Of pages here and
        there, among files that come and go, none may come about; so it uses whole ones, and
        keeps few for its processor's next use.
        """
        self.guest.run(
            "echo 1000 > /proc/sys/vm/percpu_pagelist_high_fraction\n"
            "mkdir -p /run/huge; mountpoint -q /run/huge ||"
            " mount -t tmpfs -o size=100%,huge=always huge /run/huge\n"
            f"dd if=/dev/zero of=/run/huge/freed bs=1M count={size} 2>&1; rm /run/huge/freed"
        )

    def stop_and_cont(self) -> None:
        """All rings are stopped and started: the longest exchange that QEMU has."""
        self.guest.stop()
        self.guest.cont()

    def reload_driver(self) -> None:
        """The guest sets its device up from the beginning."""
        self.guest.unload_driver()
        self.guest.load_driver()


@contextmanager
def watched(host: SystemdHost, slots: int = 0) -> Iterator[Watched]:
    """A guest of 1 GiB, with free slots for DIMMs, its driver ready; the service is stopped at the
    end, its store empty."""
    try:
        with host.options("--discard=always"):
            host.systemctl("start", WEB1.socket)
            memory = Memory(GiB, slots=slots)
            with Guest(host.path(WEB1.path), memory=memory, forker=host.forker) as guest:
                found = Watched(host, guest)
                wait_until(lambda: bool(found.vm()["driver-ready"]), 30)
                found.order_target(GiB)
                yield found
    finally:
        host.path(str(ORDER)).unlink(missing_ok=True)
        host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")
        host.systemctl("reset-failed")


# Ends


class Death:
    """The daemon's process of this moment, whose end can be waited for."""

    def __init__(self, host: SystemdHost) -> None:
        host.systemctl("reset-failed", SERVICE)  # or the service manager's pause grows each time
        self.pid = host.daemon_pid()
        self._fd = os.pidfd_open(self.pid)

    def came(self, seconds: float) -> bool:
        """Wait for it for some seconds; return whether it came."""
        return readable(self._fd, seconds)

    def wait(self) -> float:
        """Wait for it; return its time."""
        assert self.came(PATIENCE), "the daemon does not end"
        return time.monotonic()

    def kill_in(self, seconds: float) -> float:
        """SIGKILL it in so many seconds; when that was."""
        time.sleep(seconds)
        signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        return time.monotonic()

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def death(host: SystemdHost) -> Iterator[Death]:
    found = Death(host)
    try:
        yield found
    finally:
        found.close()


Busy = Callable[[Watched, random.Random], None]


def inflating(watched: Watched, chance: random.Random) -> None:
    watched.order_target(chance.randrange(600, 1000) * MiB)


def freeing(watched: Watched, chance: random.Random) -> None:
    watched.free()


def stopping(watched: Watched, chance: random.Random) -> None:
    watched.stop_and_cont()


def reloading(watched: Watched, chance: random.Random) -> None:
    watched.reload_driver()


def restarting(watched: Watched, chance: random.Random) -> None:
    """Also where the process after it does not live until it is ready."""
    watched.host.systemctl("restart", SERVICE, check=False)


BUSY: Final[tuple[Busy, ...]] = (inflating, freeing, stopping, reloading)
"""What goes on while the daemon ends."""


def keep_busy(watched: Watched, busy: Busy, chance: random.Random, end: Death) -> None:
    """Go on with it until the daemon has ended."""
    for _ in itertools.takewhile(lambda _: not end.came(0.3), range(200)):
        busy(watched, chance)
    assert end.came(0), "the daemon did not end"
