"""The demo's play, for any guest: it uses memory, frees it, and the host gets it back.

All figures are measured: the host's use of memory (st_blocks) by the guest's adapter, the daemon's
counters through its control socket. The play itself computes none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Protocol

import trio

from vhost_balloon.demo.errors import DemoError, first_of
from vhost_balloon.demo.history import History, Mark, Sample
from vhost_balloon.demo.screen import Screen

SAMPLE_SECONDS: Final = 0.1
PLAY_SECONDS: Final = 19.0
"""The approximate duration of the whole play at pace 1."""
FREE_MARK: Final = "free"
"""The part in which the memory comes back."""
_MOST: Final = 0.8  # share of the guest's memory that is touched
_STEPS: Final = 50  # steps in which it is touched, to show it grow
_IDLE: Final = 0.05  # unused memory that may remain, as a share of the guest's, when "all is back"


class PlayedGuest(Protocol):
    """What the play asks of a guest. `memory` is its size in bytes."""

    @property
    def memory(self) -> int: ...

    async def boot(self) -> None:
        """Boot the guest with its balloon driver."""

    async def touch(self, size: int) -> None:
        """Make an application in the guest use `size` more bytes."""

    async def free(self) -> None:
        """Free in the guest everything that `touch` used."""

    async def in_use(self) -> int:
        """Return the bytes that the guest itself says it uses."""

    async def resident(self) -> int:
        """Return the bytes that the host spends on the guest's memory: st_blocks of its files."""


class Commands(Protocol):
    """What the play asks of the daemon's control socket."""

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its "return" value."""


class Recorder:
    """Measures ten times a second, shows the samples and wakes waiting tasks."""

    def __init__(self, guest: PlayedGuest, qmp: Commands, screen: Screen[History]) -> None:
        self._guest = guest
        self._qmp = qmp
        self._screen = screen
        self._start = trio.current_time()
        self._sampled = trio.Event()

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            await self.measure()
            await trio.sleep(SAMPLE_SECONDS)

    async def measure(self) -> None:
        """Take one sample."""
        vms = await self._qmp.execute("query-vms")
        vm = vms[0] if vms else {}
        sample = Sample(
            time=trio.current_time() - self._start,
            in_use=await self._guest.in_use(),
            resident=await self._guest.resident(),
            balloon=vm.get("balloon", 0),
            reported=vm.get("reported-bytes", 0),
            freed=vm.get("freed-bytes", 0),
        )
        self._screen.history.samples.append(sample)
        self._screen.show()
        sampled, self._sampled = self._sampled, trio.Event()
        sampled.set()

    def mark(self, name: str, text: str) -> None:
        """Start a part of the play."""
        time = trio.current_time() - self._start
        self._screen.history.marks.append(Mark(time, name, text))

    async def until(self, condition: Callable[[Sample], bool], seconds: float) -> bool:
        """Wait until a new sample meets the condition. Return False if none does in that time."""
        with trio.move_on_after(seconds):
            while True:
                await self._sampled.wait()
                if condition(self._screen.history.samples[-1]):
                    return True
        return False


async def play(
    guest: PlayedGuest,
    qmp: Commands,
    screen: Screen[History],
    *,
    pace: float = 1.0,
    reporting: bool = True,
) -> None:
    """Run the whole play. `pace` stretches all waits (1: about PLAY_SECONDS).

    Raises:
        DemoError: the daemon refuses a command, or has gone.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            recorder = Recorder(guest, qmp, screen)
            recorder.mark("boot", "The guest boots.")
            nursery.start_soon(recorder.run)
            await guest.boot()
            await trio.sleep(1.0 * pace)
            await _use_and_free(guest, recorder, pace, reporting)
            await _need_it_again(guest, recorder, pace)
            await _inflate_and_deflate(guest, qmp, recorder, pace, reporting)
            await recorder.measure()
            nursery.cancel_scope.cancel()
    except* DemoError as errors:
        failure = first_of(errors)
    if failure is not None:
        raise failure


async def _use_and_free(
    guest: PlayedGuest, recorder: Recorder, pace: float, reporting: bool
) -> None:
    recorder.mark("touch", "Applications in the guest use most of its memory.")
    await _touch(guest, 2.2 * pace)
    await trio.sleep(0.8 * pace)
    if reporting:
        text = "They free it. The guest reports its free pages, and the host takes them back."
    else:
        text = "They free it, but the host is not told and keeps paying for it."
    recorder.mark(FREE_MARK, text)
    await guest.free()
    if reporting:
        await recorder.until(lambda sample: _all_is_back(sample, guest.memory), 12 * pace + 3)
        await trio.sleep(0.5 * pace)
    else:
        await trio.sleep(6.0 * pace)


async def _need_it_again(guest: PlayedGuest, recorder: Recorder, pace: float) -> None:
    recorder.mark("again", "The guest needs memory again and simply takes it. Then it frees it.")
    await _touch(guest, 1.4 * pace)
    await trio.sleep(0.6 * pace)
    await guest.free()


async def _inflate_and_deflate(
    guest: PlayedGuest, qmp: Commands, recorder: Recorder, pace: float, reporting: bool
) -> None:
    half = guest.memory // 2
    text = "The operator wants half of the memory now: the balloon takes it."
    recorder.mark("inflate", text)
    await qmp.execute("balloon", value=half)
    if not await recorder.until(lambda sample: sample.balloon >= half, 10 * pace + 10):
        raise DemoError("the balloon did not reach its size")
    if reporting:  # the rest comes back without the balloon
        await recorder.until(lambda sample: _all_is_back(sample, guest.memory), 8 * pace + 3)
    await trio.sleep(1.0 * pace)
    recorder.mark("deflate", "The operator gives it back: the guest has all its memory again.")
    await qmp.execute("balloon", value=guest.memory)
    if not await recorder.until(lambda sample: not sample.balloon, 10 * pace + 10):
        raise DemoError("the balloon was not emptied")
    await trio.sleep(1.5 * pace)


async def _touch(guest: PlayedGuest, seconds: float) -> None:
    """Touch most of the memory that the guest does not use yet, evenly over `seconds`."""
    total = int(guest.memory * _MOST) - await guest.in_use()
    start = trio.current_time()
    for step in range(_STEPS):
        await guest.touch(math.ceil(total / _STEPS))
        await trio.sleep_until(start + seconds * (step + 1) / _STEPS)


def _all_is_back(sample: Sample, memory: int) -> bool:
    return sample.resident - sample.in_use <= _IDLE * memory
