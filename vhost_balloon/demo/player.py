"""The demo's play, for any guest: it uses memory, frees it, and the host gets it back.

Everything shown is measured: what the host spends by the one who knows the guest's memory
(st_blocks), the daemon's counters through its control socket. Nothing here moves a figure.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any, Final, Protocol

import trio

from vhost_balloon.demo.picture import Mark, Sample
from vhost_balloon.demo.screen import Screen

SAMPLE_SECONDS: Final = 0.1
PLAY_SECONDS: Final = 19.0
"""About how long the whole play takes at pace 1."""
FREE_MARK: Final = "free"
"""The part in which the memory comes back."""
_MOST: Final = 0.8  # of the guest's memory is touched
_STEPS: Final = 50  # in so many pieces, so that one sees it grow
_IDLE: Final = 0.05  # of the guest's memory: so much more than it uses is "all is back"


class DemoError(Exception):
    """The play cannot go on; the text is for the user."""


class PlayedGuest(Protocol):
    """What a guest must offer. `memory` is its size in bytes."""

    @property
    def memory(self) -> int: ...

    async def boot(self) -> None:
        """Have the guest up, with its balloon driver."""

    async def touch(self, size: int) -> None:
        """Have an application in the guest use `size` more bytes."""

    async def free(self) -> None:
        """Have all that `touch` used freed in the guest."""

    async def in_use(self) -> int:
        """Bytes that the guest itself says it uses."""

    async def resident(self) -> int:
        """Bytes that the host spends on the guest's memory: st_blocks of its files."""


class Commands(Protocol):
    """The daemon's control socket, as far as the play needs it."""

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it returns."""


class QmpClient:
    """A connection to the daemon's control socket. An async context manager."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._lock = trio.Lock()

    @classmethod
    async def connect(cls, path: str | os.PathLike[str]) -> QmpClient:
        """Connect and negotiate.

        Raises:
            OSError: nobody listens at `path`.
            DemoError: it does not speak QMP.
        """
        return await cls.negotiate(await trio.open_unix_socket(os.fspath(path)))

    @classmethod
    async def negotiate(cls, stream: trio.SocketStream) -> QmpClient:
        """Take a connected stream over, read the greeting and answer it.

        Raises:
            DemoError: it does not speak QMP.
        """
        client = cls(stream)
        await client._receive()
        await client.execute("qmp_capabilities")
        return client

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it returns; events that come between are dropped.

        Raises:
            DemoError: it failed, or the daemon is gone.
        """
        async with self._lock:
            request = {"execute": command, "arguments": arguments}
            try:
                await self._stream.send_all(json.dumps(request).encode() + b"\n")
            except trio.BrokenResourceError:
                raise DemoError("the daemon is gone") from None
            while True:
                message = await self._receive()
                if "error" in message:
                    raise DemoError(f"{command}: {message['error'].get('desc')}")
                if "return" in message:
                    return message["return"]

    async def __aenter__(self) -> QmpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()

    async def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                data = await self._stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise DemoError("the daemon is gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise DemoError("the control socket does not speak QMP") from None
        return message


class Recorder:
    """Measures ten times a second, shows it, and tells those who wait for something."""

    def __init__(self, guest: PlayedGuest, qmp: Commands, screen: Screen) -> None:
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
        """Begin a part of the play."""
        time = trio.current_time() - self._start
        self._screen.history.marks.append(Mark(time, name, text))

    async def until(self, condition: Callable[[Sample], bool], seconds: float) -> bool:
        """Wait until a new sample fulfils the condition; False if none did in that time."""
        with trio.move_on_after(seconds):
            while True:
                await self._sampled.wait()
                if condition(self._screen.history.samples[-1]):
                    return True
        return False


async def play(
    guest: PlayedGuest,
    qmp: Commands,
    screen: Screen,
    *,
    pace: float = 1.0,
    reporting: bool = True,
) -> None:
    """Play the whole thing. `pace` stretches all waits (1: about PLAY_SECONDS).

    Raises:
        DemoError: the daemon refuses something, or is gone.
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


def first_of(errors: BaseException) -> BaseException:
    """Return one of the errors that tasks of a nursery ended with; one is enough for a user."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


async def _use_and_free(
    guest: PlayedGuest, recorder: Recorder, pace: float, reporting: bool
) -> None:
    recorder.mark("touch", "Applications in the guest use most of its memory.")
    await _touch(guest, 2.2 * pace)
    await trio.sleep(0.8 * pace)
    if reporting:
        text = "They have freed it. The guest reports free pages, and the host takes them back."
    else:
        text = "They have freed it, but the host is not told, and goes on paying for it."
    recorder.mark(FREE_MARK, text)
    await guest.free()
    if reporting:
        await recorder.until(lambda sample: _all_is_back(sample, guest.memory), 12 * pace + 3)
        await trio.sleep(0.5 * pace)
    else:
        await trio.sleep(6.0 * pace)


async def _need_it_again(guest: PlayedGuest, recorder: Recorder, pace: float) -> None:
    recorder.mark("again", "The guest needs memory again: it just takes it. Then it frees it.")
    await _touch(guest, 1.4 * pace)
    await trio.sleep(0.6 * pace)
    await guest.free()


async def _inflate_and_deflate(
    guest: PlayedGuest, qmp: Commands, recorder: Recorder, pace: float, reporting: bool
) -> None:
    half = guest.memory // 2
    text = "The operator wants half of its memory at once: the balloon takes it."
    recorder.mark("inflate", text)
    await qmp.execute("balloon", value=half)
    if not await recorder.until(lambda sample: sample.balloon >= half, 10 * pace + 10):
        raise DemoError("the balloon did not reach its size")
    if reporting:  # the rest comes back by itself
        await recorder.until(lambda sample: _all_is_back(sample, guest.memory), 8 * pace + 3)
    await trio.sleep(1.0 * pace)
    recorder.mark("deflate", "The operator gives it back: the guest has all of its memory again.")
    await qmp.execute("balloon", value=guest.memory)
    if not await recorder.until(lambda sample: not sample.balloon, 10 * pace + 10):
        raise DemoError("the balloon was not emptied")
    await trio.sleep(1.5 * pace)


async def _touch(guest: PlayedGuest, seconds: float) -> None:
    """Touch most of what the guest does not use yet, evenly within `seconds` if it can."""
    total = int(guest.memory * _MOST) - await guest.in_use()
    start = trio.current_time()
    for step in range(_STEPS):
        await guest.touch(math.ceil(total / _STEPS))
        await trio.sleep_until(start + seconds * (step + 1) / _STEPS)


def _all_is_back(sample: Sample, memory: int) -> bool:
    return sample.resident - sample.in_use <= _IDLE * memory
