"""vhost-balloon-demo: shows the daemon's main job in one terminal, with a simulated guest.

The daemon is real and runs in a separate process, the guest's memory is real shared memory, and the
figures come from the kernel and the daemon. Only the guest's processor is simulated.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.demo import picture
from vhost_balloon.demo.available import available_memory
from vhost_balloon.demo.daemon import running_daemon
from vhost_balloon.demo.errors import DemoError, first_of
from vhost_balloon.demo.history import History
from vhost_balloon.demo.options import MIB, MIN_MEMORY, PROGRAM, Options, parse_options
from vhost_balloon.demo.player import FREE_MARK, play
from vhost_balloon.demo.policy.lives import NAMES
from vhost_balloon.demo.policy.show import show_policy
from vhost_balloon.demo.screen import Screen
from vhost_balloon.printable import printable
from vhost_balloon.simulator.connection import Refused
from vhost_balloon.simulator.guest import SimulatedGuest, running_guest
from vhost_balloon.simulator.options import DriverOptions
from vhost_balloon.simulator.wire import BackEndGone
from vhost_balloon.sizes import format_size

KERNEL_SHARE: Final = 16
"""The simulated kernel uses one part in KERNEL_SHARE of the guest's memory."""
REPORTING_SECONDS: Final = 6.0
"""Time limit for all of the guest's reports, at pace 1."""
LINUX_REPORT_SECONDS: Final = 2.0
REPORTED_AT_ONCE: Final = 128 * MIB
"""Bytes that a Linux guest of up to 2 GiB reports in one pass."""


class DemoGuest:
    """Adapts the simulated guest to the play. `free` spares the kernel's own memory."""

    def __init__(self, guest: SimulatedGuest) -> None:
        self._guest = guest
        self._touched = 0

    @property
    def memory(self) -> int:
        return self._guest.ram.size

    async def boot(self) -> None:
        await self._guest.touch(self.memory // KERNEL_SHARE)

    async def touch(self, size: int) -> None:
        before = self._guest.in_use
        await self._guest.touch(size)
        self._touched += self._guest.in_use - before

    async def free(self) -> None:
        self._touched -= await self._guest.free(self._touched)

    async def in_use(self) -> int:
        return self._guest.in_use

    async def resident(self) -> int:
        return self._guest.resident()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of vhost-balloon-demo; returns the exit status."""
    options = parse_options(arguments)
    try:
        return trio.run(run, options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except DemoError as error:
        # print() would use standard output instead of a closed standard error.
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                print(f"{PROGRAM}: {printable(str(error))}", file=sys.stderr)
        return 1


async def run(options: Options) -> int:
    """Run the demo until its end or a signal. Return the exit status.

    Raises:
        DemoError: something failed.
    """
    status = 0

    async def end_on_signal() -> None:
        nonlocal status
        with trio.open_signal_receiver(*_wanted_signals()) as signals:
            async for number in signals:
                status = 128 + number
                nursery.cancel_scope.cancel()

    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_on_signal)
        try:
            await show(options)
        except* (DemoError, BackEndGone, Refused, OSError) as errors:
            failure = first_of(errors)
        nursery.cancel_scope.cancel()
    if failure is not None and not status:
        raise failure if isinstance(failure, DemoError) else DemoError(str(failure))
    return status


async def show(options: Options) -> None:
    """Run the play that was asked for."""
    if options.play == "policy":
        memory = affordable(options.memory * len(NAMES)) // len(NAMES) // MIN_MEMORY * MIN_MEMORY
        await show_policy(max(MIN_MEMORY, memory), options.pace)
    else:
        await show_reporting(options)


async def show_reporting(options: Options) -> None:
    """Start the daemon and the guest, run the play, and print the summary."""
    memory = affordable(options.memory)
    title = f"vhost-balloon: a simulated guest with {format_size(memory)}"
    screen = Screen(History(title, memory, options.seconds), sys.stdout)
    delay = report_delay(memory, options.pace)
    with (
        tempfile.TemporaryDirectory(prefix=f"{PROGRAM}-", ignore_cleanup_errors=True) as folder,
        screen,
    ):
        screen.write(_introduction(options, memory, delay))
        async with running_daemon(Path(folder), options.reporting) as qmp:
            driver = DriverOptions(report_delay=delay)
            async with running_guest(Path(folder) / "demo.sock", memory, driver) as guest:
                await play(
                    DemoGuest(guest), qmp, screen, pace=options.pace, reporting=options.reporting
                )
        screen.write(["", *picture.summary(screen.history, FREE_MARK)])


def _introduction(options: Options, memory: int, delay: float) -> list[str]:
    lines = []
    if memory < options.memory:
        lines.append(
            f"This machine has too little free memory for a guest of {format_size(options.memory)}:"
            f" the guest gets {format_size(memory)}."
        )
    if options.reporting and delay < LINUX_REPORT_SECONDS:
        lines.append(f"To save time, the guest reports every {delay:.2g} s instead of Linux's 2 s.")
    if not options.reporting:
        lines.append("The daemon runs with --no-reporting.")
    return lines


def affordable(memory: int) -> int:
    """Return `memory`, or less if the machine cannot spare it now: a multiple of 64 MiB."""
    affordable = int(available_memory() * 0.6) // MIN_MEMORY * MIN_MEMORY
    return min(memory, max(MIN_MEMORY, affordable))


def report_delay(memory: int, pace: float) -> float:
    """Return the seconds between two reports: Linux's 2, or less if that would take too long."""
    at_once = REPORTED_AT_ONCE * math.ceil(memory / (2 << 30))
    passes = math.ceil(memory * 0.75 / at_once)
    return min(LINUX_REPORT_SECONDS, REPORTING_SECONDS * pace / passes)


def _wanted_signals() -> list[signal.Signals]:
    """Return the signals that end the demo, without SIGHUP under nohup."""
    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    return ending


if __name__ == "__main__":
    sys.exit(main())
