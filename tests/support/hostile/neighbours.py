"""A well-behaved VM beside a hostile one, which must not notice anything.

Each VM has a real daemon in a process of its own. So has the neighbour's front end, which nothing
in the test can delay:

    python -m tests.support.hostile.neighbours SOCKET REPORT PID

It makes requests continuously, checks each answer and the effect on its memory, and writes one
line per request.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from protocol.virtio_balloon import Queue
from tests.rig import process
from tests.rig.daemon import Daemon
from tests.support.end_to_end import BLOCK, MIB, PAGE, ByHand, by_hand, fill, is_filled

LIMIT: Final = 1.0
"""Seconds within which every request of a neighbour is answered, without the time for which its
two processes waited for a processor: this machine has other work, too."""
HARD_LIMIT: Final = 10.0
"""Seconds within which every request is answered, whatever else this machine does."""
KEPT_BACK: Final = "kept"
LATE: Final = "not discarded: late"
"""What its daemon says of a request that it could not show to have waited less than 0.5 s."""
ENOUGH: Final = 40
"""Requests that show that it is served: some eight rounds."""

PATIENCE: Final = 30.0
"""Seconds for what a hostile VM's own daemon may take, on a busy machine."""

KEPT: Final = range(8 * MIB, 12 * MIB)
"""Memory that nothing names: its content stays."""
REPORTED: Final = range(16 * MIB, 48 * MIB)
INFLATED: Final = 48 * MIB // PAGE
"""The first of the pages that go into the balloon."""

T = TypeVar("T")


class Client:
    """The neighbour's guest and front end."""

    def __init__(self, guest: ByHand, report: int, daemon: int) -> None:
        self._guest = guest
        self._report = report
        self._processes = (os.getpid(), daemon)
        self._took = 0.0
        self._pages = range(INFLATED, INFLATED + 64)
        self._names = guest.pfns(self._pages[::2])

    async def live(self) -> None:
        """Until killed, or until something is wrong."""
        fill(self._guest.ram, KEPT.start, len(KEPT))
        number = 0
        while True:
            number += 1
            await self._round(number)
            await trio.sleep(0.002)

    async def _round(self, number: int) -> None:
        guest = self._guest
        block = REPORTED[number * BLOCK % len(REPORTED)]
        fill(guest.ram, block, BLOCK)
        await self._timed("report", lambda: guest.report((block, BLOCK)))
        self._discarded("report", guest.ram.resident_in(block, BLOCK))

        pages, inflate = self._pages, guest.rings[Queue.INFLATE]
        fill(guest.ram, pages.start * PAGE, len(pages) * PAGE)
        await self._timed("inflate", lambda: inflate.submit([self._names]))
        self._discarded(
            "inflate", sum(guest.ram.resident_in(page * PAGE, PAGE) for page in pages[::2])
        )
        if not all(is_filled(guest.ram, page * PAGE, PAGE) for page in pages[1::2]):
            self._wrong("pages beside those that were inflated are lost")

        actual = number.to_bytes(4, "little")
        await self._timed("write", lambda: guest.front_end.set_config(slice(4, 8), actual))
        config = await self._timed("read", guest.front_end.get_config)
        if config[4:8] != actual:
            self._wrong(f"config space has {config.hex()}")
        deflate = guest.rings[Queue.DEFLATE]
        await self._timed("deflate", lambda: deflate.submit([self._names]))
        if not is_filled(guest.ram, KEPT.start, len(KEPT)):
            self._wrong("memory that nobody named is lost")

    async def _timed(self, what: str, request: Callable[[], Awaitable[T]]) -> T:
        started, waited = time.monotonic(), self._waited()
        try:
            with trio.fail_after(HARD_LIMIT):
                answer = await request()
        except Exception as error:
            self._wrong(f"{what}: {error!r}")
        self._took = time.monotonic() - started
        waited = self._waited() - waited
        os.write(self._report, f"{started} {self._took} {waited} {what}\n".encode())
        return answer

    def _waited(self) -> float:
        """Seconds for which both processes were ready to run and did not."""
        files = [Path(f"/proc/{process}/schedstat") for process in self._processes]
        with contextlib.suppress(FileNotFoundError):  # the daemon is gone: that is seen elsewhere
            return sum(int(file.read_text().split()[1]) for file in files) / 1e9
        return 0.0

    def _discarded(self, what: str, resident: int) -> None:
        if resident:
            text = f"{KEPT_BACK} {what}: {resident} bytes were not discarded"
            os.write(self._report, f"{time.monotonic()} 0 0 {text}\n".encode())

    def _wrong(self, text: str) -> Any:
        os.write(self._report, f"{time.monotonic()} 0 0 wrong {text}\n".encode())
        raise SystemExit(1)


async def client(socket: Path, report: Path, daemon: int) -> None:
    fd = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with by_hand(socket, 64 * MIB) as guest:
        await Client(guest, fd, daemon).live()


@dataclass(frozen=True)
class Answered:
    """A request of the neighbour: when it was made (CLOCK_MONOTONIC), what it took in all, and how
    much of that its processes waited for a processor; seconds."""

    at: float
    seconds: float
    waited: float
    what: str

    @property
    def own(self) -> float:
        return self.seconds - self.waited


class Neighbour:
    """The neighbour, seen from a test."""

    def __init__(self, daemon: Daemon, report: Path, ended: Callable[[], int | None]) -> None:
        self.daemon = daemon
        self.ended = ended
        self._report = report

    def answered(self) -> list[Answered]:
        """All requests up to now."""
        found = []
        for line in self._report.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                at, seconds, waited, what = line.strip().split(" ", 3)
                found.append(Answered(float(at), float(seconds), float(waited), what))
        return found

    def problems(self) -> list[str]:
        """All that it noticed."""
        found, now = [], time.monotonic()
        answered = self.answered()
        for each in answered:
            if each.what.startswith("wrong"):
                found.append(each.what)
            elif each.own > LIMIT or each.seconds > HARD_LIMIT:
                found.append(f"{each.what} took {each.own:.3f} s of {each.seconds:.3f}")
        silence = now - answered[-1].at - answered[-1].seconds
        if silence > HARD_LIMIT:
            found.append(f"nothing was answered for {silence:.3f} s")
        if not self.daemon.running():
            found.append(f"its daemon ended with status {self.daemon.status()}")
        if self.ended() is not None and not found:
            found.append("its front end ended")
        log = self.daemon.log().splitlines()
        found += [line for line in log if not (line.startswith("info:") or LATE in line)]
        kept = [each.what for each in answered if each.what.startswith(KEPT_BACK)]
        # Some may have come late where this machine has other work.
        if len(kept) > (3 + len(answered) // 50 if any(LATE in line for line in log) else 0):
            found += kept
        return found

    async def goes_on(self, count: int = ENOUGH) -> None:
        """Wait until that many more requests were answered, and see that all was well."""
        enough = len(self.answered()) + count
        while len(self.answered()) < enough and not self.problems():  # noqa: ASYNC110 - a file
            await trio.sleep(0.01)
        self.is_well()

    async def is_served_for(self, seconds: float) -> None:
        """Let time pass."""
        await trio.sleep(seconds)
        await self.goes_on(1)

    def counted_nothing_bad(self) -> None:
        """Its daemon counted nothing but good requests."""
        vm = ask(self.daemon)
        assert vm["attached"]
        assert (vm["ring-errors"], vm["front-end-errors"], vm["front-end-stalls"]) == ({}, 0, 0)
        assert not vm["refused-bytes"].keys() - {"late"}

    def is_well(self) -> None:
        problems = self.problems()
        assert not problems, problems


@contextlib.contextmanager
def neighbour() -> Iterator[Neighbour]:
    """A VM that is served by now. If nothing else failed, it must have noticed nothing."""
    with tempfile.TemporaryDirectory() as folder, Daemon("--stats-interval=0") as daemon:
        report = Path(folder, "report")
        report.touch()
        arguments = [str(daemon.socket), str(report), str(daemon.pid)]
        with (Path(folder) / "client.log").open("wb") as log:
            client = process.spawn([sys.executable, "-m", __name__, *arguments], output=log)
        try:
            found = Neighbour(daemon, report, client.poll)
            _wait(found, ENOUGH)
            yield found
            _wait(found, len(found.answered()) + ENOUGH)
            found.is_well()
            found.counted_nothing_bad()
        finally:
            process.kill(client)


def ask(daemon: Daemon) -> Any:
    """What it says of its VM."""
    with daemon.qmp() as qmp:
        (vm,) = qmp.execute("query-vms")
        return vm


def _wait(found: Neighbour, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(found.answered()) < count:
        assert time.monotonic() < deadline, found.problems() or found.daemon.log()
        if len(found.answered()) > 0:
            found.is_well()
        time.sleep(0.01)


@contextlib.contextmanager
def hostile(*options: str) -> Iterator[Daemon]:
    """The daemon of the hostile VM, which may end as it likes."""
    daemon = Daemon("--stats-interval=0", *options, name="hostile")
    try:
        daemon.start()
        yield daemon
    except BaseException:
        print(daemon.log())  # pytest shows it if the test fails
        raise
    finally:
        daemon.close()


async def answers(guest: ByHand, seconds: float = PATIENCE) -> None:
    """The hostile VM's own daemon, if it has to go on: a page is discarded, and no other."""
    page = guest.ram.regions[0].end - 2 * PAGE
    with trio.fail_after(seconds):
        # Again if it came late: then it is acknowledged and not carried out.
        while guest.ram.is_resident(page) or not guest.ram.is_resident(page + PAGE):
            fill(guest.ram, page, 2 * PAGE)
            await guest.inflate([page // PAGE])
            assert is_filled(guest.ram, page + PAGE, PAGE)
        assert len(await guest.front_end.get_config()) == 16


async def serves(path: Path, seconds: float = PATIENCE) -> None:
    """It serves the next front end."""
    with trio.fail_after(seconds):
        async with by_hand(path, 16 * MIB) as guest:
            await answers(guest)


if __name__ == "__main__":
    trio.run(client, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
