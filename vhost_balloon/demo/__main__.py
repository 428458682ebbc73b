"""vhost-balloon-demo: the daemon's main job in one terminal, with a simulated guest.

The daemon is the real one, in a process of its own; the guest's memory is real shared memory of
this machine; the figures are the kernel's and the daemon's. Only the guest's processor is played.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import trio

from vhost_balloon.demo import picture
from vhost_balloon.demo.available import available_memory
from vhost_balloon.demo.player import FREE_MARK, PLAY_SECONDS, DemoError, QmpClient, first_of, play
from vhost_balloon.demo.screen import Screen
from vhost_balloon.printable import printable
from vhost_balloon.simulator.connection import Refused
from vhost_balloon.simulator.guest import SimulatedGuest, running_guest
from vhost_balloon.simulator.options import DriverOptions
from vhost_balloon.simulator.wire import BackEndGone

PROGRAM: Final = "vhost-balloon-demo"
MIB: Final = 1 << 20
DEFAULT_MEMORY: Final = 512 * MIB
MIN_MEMORY: Final = 64 * MIB
MAX_MEMORY: Final = 1 << 40
KERNEL_SHARE: Final = 16
"""The simulated kernel uses one part in so many of the guest's memory."""
START_SECONDS: Final = 15.0
"""How long the daemon may take to listen, on a busy machine."""
STOP_SECONDS: Final = 5.0
REPORTING_SECONDS: Final = 6.0
"""All of the guest's reports have to fit into this, at pace 1."""
LINUX_REPORT_SECONDS: Final = 2.0
REPORTED_AT_ONCE: Final = 128 * MIB
"""What a Linux guest of up to 2 GiB reports in one pass."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line: memory in bytes, seconds for the whole play."""

    memory: int = DEFAULT_MEMORY
    seconds: float = PLAY_SECONDS
    reporting: bool = True

    @property
    def pace(self) -> float:
        return self.seconds / PLAY_SECONDS


class DemoGuest:
    """The simulated guest as the play sees it: its kernel's own memory is never freed."""

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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of vhost-balloon-demo; returns the exit status."""
    options = parse_options(arguments)
    try:
        return trio.run(run, options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except DemoError as error:
        # Without a standard error, print() would take standard output for it.
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                print(f"{PROGRAM}: {printable(str(error))}", file=sys.stderr)
        return 1


def parse_options(arguments: Sequence[str] | None) -> Options:
    """Read the command line; ends the program with status 2 on a mistake."""
    parser = _Parser(
        prog=PROGRAM,
        description="Show how freed guest memory comes back to the host, with a simulated guest.",
    )
    parser.add_argument(
        "--memory",
        type=_memory_size,
        default=DEFAULT_MEMORY,
        metavar="SIZE",
        help="the guest's memory, such as 512M or 2G (default 512M)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=PLAY_SECONDS,
        help=f"about how long the whole play takes, from 3 to 600 (default {PLAY_SECONDS:.0f})",
    )
    parser.add_argument(
        "--no-reporting",
        action="store_true",
        help="run the daemon without free page reporting, to see the difference",
    )
    values = parser.parse_args(arguments)
    return Options(values.memory, values.seconds, not values.no_reporting)


async def run(options: Options) -> int:
    """Play until the end or until a signal comes; return the exit status.

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
    """Start daemon and guest, play, and print the summary."""
    memory = affordable(options.memory)
    title = f"vhost-balloon: a simulated guest with {picture.size(memory)}"
    screen = Screen(picture.History(title, memory, options.seconds), sys.stdout)
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


@asynccontextmanager
async def running_daemon(folder: Path, reporting: bool) -> AsyncIterator[QmpClient]:
    """Run the daemon with one VM, its front-end socket at folder/demo.sock.

    Raises:
        DemoError: it does not start.
    """
    control, log = folder / "control.sock", folder / "daemon.log"
    command = [
        *(sys.executable, "-m", "vhost_balloon"),
        f"--socket-path={folder / 'demo.sock'}",
        f"--control-socket={control}",
        *([] if reporting else ["--no-reporting"]),
    ]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C is for us, and we end the daemon in order.
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        async with await _connect(process, control, log) as qmp:
            yield qmp
    finally:
        await _stop(process)


async def _connect(process: trio.Process, control: Path, log: Path) -> QmpClient:
    """Wait until the daemon listens; it opens the control socket last."""
    with trio.move_on_after(START_SECONDS):
        while process.poll() is None:
            try:
                return await QmpClient.connect(control)
            except OSError:
                await trio.sleep(0.05)
    last = (await trio.Path(log).read_text(errors="replace")).strip().rpartition("\n")[2]
    raise DemoError(f"the daemon did not start: {last or 'it said nothing'}")


async def _stop(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
        process.kill()
        await process.wait()


def _introduction(options: Options, memory: int, delay: float) -> list[str]:
    lines = []
    if memory < options.memory:
        lines.append(
            f"There is too little free memory here for a guest of {picture.size(options.memory)}:"
            f" this one has {picture.size(memory)}."
        )
    if options.reporting and delay < LINUX_REPORT_SECONDS:
        lines.append(
            f"To save time the guest reports every {delay:.2g} s; Linux does so every 2 s."
        )
    if not options.reporting:
        lines.append("The daemon runs with --no-reporting.")
    return lines


def affordable(memory: int) -> int:
    """Return `memory`, or what the machine can well give at the moment in steps of 64 MiB."""
    affordable = int(available_memory() * 0.6) // MIN_MEMORY * MIN_MEMORY
    return min(memory, max(MIN_MEMORY, affordable))


def report_delay(memory: int, pace: float) -> float:
    """Return the seconds between two reports: Linux's two, or less where that takes too long."""
    at_once = REPORTED_AT_ONCE * math.ceil(memory / (2 << 30))
    passes = math.ceil(memory * 0.75 / at_once)
    return min(LINUX_REPORT_SECONDS, REPORTING_SECONDS * pace / passes)


def _wanted_signals() -> list[signal.Signals]:
    """Those that end the demo; not SIGHUP if we were started to survive it (nohup)."""
    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    return ending


def _memory_size(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    shift = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}.get(unit)
    if shift is None or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512M")
    size = int(number) << shift
    if not MIN_MEMORY <= size <= MAX_MEMORY or size % MIB:
        raise argparse.ArgumentTypeError("the guest has from 64M to 1T, in whole MiB")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 3 <= seconds <= 600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 3 to 600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
