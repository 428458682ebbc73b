"""The demo's play, with a fake guest."""

from __future__ import annotations

import io
from typing import Any

import pytest
import trio
import trio.testing

from vhost_balloon.demo.errors import DemoError
from vhost_balloon.demo.history import History
from vhost_balloon.demo.player import PLAY_SECONDS, play
from vhost_balloon.demo.screen import Screen

MIB = 1 << 20


class FakeGuest:
    """A fake guest and daemon without memory. Freed memory is reported after two seconds."""

    def __init__(self, *, reporting: bool = True, balloon_works: bool = True) -> None:
        self.memory = 512 * MIB
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.used = self.spent = self.balloon = self.reported = 0
        self.peak = 0
        self._reporting = reporting
        self._balloon_works = balloon_works
        self._freed_at = 0.0

    async def boot(self) -> None:
        self.used = self.spent = 32 * MIB

    async def touch(self, size: int) -> None:
        self.used += size
        self.spent = max(self.spent, self.used)
        self.peak = max(self.peak, self.used)

    async def free(self) -> None:
        self.used = 32 * MIB
        self._freed_at = trio.current_time()

    async def in_use(self) -> int:
        return self.used

    async def resident(self) -> int:
        if self._reporting and trio.current_time() > self._freed_at + 2:
            self.reported += self.spent - self.used
            self.spent = self.used
        return self.spent

    async def execute(self, command: str, **arguments: Any) -> Any:
        if command == "balloon":
            self.commands.append((command, arguments))
            self.balloon = self.memory - arguments["value"] if self._balloon_works else 0
        if command != "query-vms":
            return {}
        return [{"id": "demo", "balloon": self.balloon, "reported-bytes": self.reported}]


async def played(guest: FakeGuest, **options: Any) -> tuple[History, str]:
    output = io.StringIO()
    history = History("test", guest.memory, PLAY_SECONDS)
    with Screen(history, output) as screen:
        await play(guest, guest, screen, **options)
    return history, output.getvalue()


async def test_the_play_has_its_parts_in_order(autojump_clock: trio.testing.MockClock) -> None:
    guest = FakeGuest()
    history, _ = await played(guest)
    names = [mark.name for mark in history.marks]
    assert names == ["boot", "touch", "free", "again", "inflate", "deflate"]
    assert guest.peak > 0.79 * guest.memory
    assert guest.commands == [
        ("balloon", {"value": 256 * MIB}),
        ("balloon", {"value": 512 * MIB}),
    ]
    assert max(sample.balloon for sample in history.samples) == 256 * MIB
    last = history.samples[-1]
    assert (last.in_use, last.resident, last.balloon) == (32 * MIB, 32 * MIB, 0)
    assert 10 < last.time < PLAY_SECONDS + 3


@pytest.mark.parametrize("pace", [0.25, 3.0])
async def test_the_pace_stretches_the_play(
    pace: float, autojump_clock: trio.testing.MockClock
) -> None:
    history, _ = await played(FakeGuest(reporting=False), pace=pace, reporting=False)
    assert 14 * pace < history.samples[-1].time < 20 * pace


async def test_without_reporting_the_memory_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    history, output = await played(FakeGuest(reporting=False), reporting=False)
    assert history.samples[-1].resident > 0.79 * 512 * MIB
    assert "the host is not told" in output


async def test_a_daemon_that_does_nothing_is_an_error_not_a_hang(
    autojump_clock: trio.testing.MockClock,
) -> None:
    history, _ = await played(FakeGuest(reporting=False))
    assert history.samples[-1].resident > 0.79 * 512 * MIB, "the measured figures are shown"
    with pytest.raises(DemoError, match="balloon did not reach"):
        await played(FakeGuest(balloon_works=False))
