"""The shelf loses no descriptor in use, at whatever step a process dies."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from protocol.vhost_user import HEADER, VERSION, Request
from tests.support.shelves import ended, mark, marked, names, shelves, started, successor
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.conversation import settle
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.restart.reattach import read_pending
from vhost_balloon.session.message import Message
from vhost_balloon.store import shelf as module
from vhost_balloon.store.journal import Journal
from vhost_balloon.store.shelf import (
    MAX_PACKET,
    Shelf,
    ShelvedFd,
    _Pair,
    shelf_name,
)
from vhost_balloon.store.slots import Slots

# Death at any step


class Died(Exception):
    """Stands for the death of the process."""


@contextmanager
def dying(shelf: Shelf, at: int) -> Iterator[list[int]]:
    """Die at a step (from 0): sending into a pair, emptying one, or noting which is in use. Yields
    the steps that were taken."""
    steps: list[int] = []

    def counted(function: Callable[..., None]) -> Callable[..., None]:
        def step(*arguments: Any) -> None:
            if len(steps) == at:
                raise Died
            steps.append(at)
            function(*arguments)

        return step

    switched = shelf.switched
    shelf.switched = counted(switched)
    try:
        with (
            mock.patch.object(_Pair, "send", counted(_Pair.send)),
            mock.patch.object(_Pair, "empty", counted(_Pair.empty)),
        ):
            yield steps
    finally:
        shelf.switched = switched


def next_process(
    stack: contextlib.ExitStack, before: Shelf, in_use: int, used: dict[str, int]
) -> Shelf:
    """The shelf after a death; it has all descriptors in use."""
    found = successor(before, in_use)
    stack.callback(found.close)
    found.load()
    assert {name: mark(found.adopt(name)) for name in used} == used
    return found


@pytest.mark.parametrize("in_use", [0, 1])
def test_death_between_any_two_steps_of_compacting(in_use: int) -> None:
    for at in range(20):
        with shelves() as shelf:
            recorded = [0]

            def switched(shelf: Shelf = shelf, recorded: list[int] = recorded) -> None:
                recorded[0] = shelf.in_use

            shelf.switched = switched
            for _ in range(in_use):
                shelf._compact()
            fds = [fd for _ in range(5) for fd in shelf.put([marked(1), marked(2), marked(3)])]
            for fd in fds[1::2]:
                fd.close()
            used = {name: mark(fd) for fd in fds[::2] for name in names([fd])}
            with dying(shelf, at) as steps, suppress(Died):
                shelf._compact()
            is_whole = len(steps) < at
            with contextlib.ExitStack() as stack:
                next_process(stack, shelf, recorded[0], used)  # the next process may die as well
                next_one = next_process(stack, shelf, recorded[0], used)
                (fd,) = next_one.put([marked(9)])
                assert names([fd]) == ["6.0"]
                next_one._compact()
                assert mark(next_process(stack, next_one, next_one.in_use, used).adopt("6.0")) == 9
        if is_whole:
            return
    pytest.fail("it never came to its end")


class Shelving(RuleBasedStateMachine):
    """Successive processes with the same ends; a record names the descriptors in use."""

    fds = Bundle("fds")

    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch.object(module, "BUFFER", 20_000)
        self.patch.start()
        self.shelf = Shelf.create()
        self.recorded = 0
        self.given: set[int] = set()
        self.marks: dict[str, int] = {}
        self.open: list[ShelvedFd] = []
        self._follow()

    def _follow(self) -> None:
        def switched() -> None:
            self.recorded = self.shelf.in_use

        self.shelf.switched = switched

    def teardown(self) -> None:
        for fd in self.open:
            fd.close()
        self.shelf.close()
        self.patch.stop()

    @rule(target=fds, count=st.integers(1, MAX_PACKET), at=st.none() | st.integers(0, 40))
    def put(self, count: int, at: int | None) -> Any:
        """The process dies at step at, if not None."""
        files = [marked(len(self.given) + 1) for _ in range(count)]
        found: list[ShelvedFd] = []
        try:
            with dying(self.shelf, -1 if at is None else at):
                for fd in self.shelf.put(list(files)):
                    assert isinstance(fd, ShelvedFd)
                    found.append(fd)
        except BlockingIOError:
            assert not any(file.closed for file in files)
            assert len(self.marks) > 20
        except Died:
            self.die()
        else:
            numbers = {int(fd.name.partition(".")[0]) for fd in found}
            assert len(numbers) == 1
            assert not numbers & self.given, "a number was reused"
            self.given |= numbers
            self.open += found
            self.marks |= {fd.name: mark(fd) for fd in found}
        return multiple(*(fd.name for fd in found))

    @rule(name=consumes(fds))
    def close(self, name: str) -> None:
        for fd in [fd for fd in self.open if fd.name == name]:
            fd.close()
            self.open.remove(fd)
        del self.marks[name]

    @rule(name=fds)
    def adopt_again(self, name: str) -> None:
        fd = self.shelf.adopt(name)
        assert isinstance(fd, ShelvedFd)
        self.open.append(fd)

    @rule()
    def compact(self) -> None:
        self.shelf._compact()

    @rule()
    def die(self) -> None:
        """Only the service manager's descriptors remain; the next process continues."""
        before, self.shelf = self.shelf, successor(self.shelf, self.recorded)
        for fd in self.open:
            OwnedFd.close(fd)
        before.close()
        self._follow()
        self.shelf.load()
        self.open = []
        for name in self.marks:
            adopted = self.shelf.adopt(name)
            assert isinstance(adopted, ShelvedFd)
            self.open.append(adopted)
        self.shelf.sweep()

    @invariant()
    def nothing_in_use_is_lost(self) -> None:
        assert {fd.name: mark(fd) for fd in self.open} == self.marks
        assert set(self.shelf.users) == set(self.marks)


Shelving.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestShelving = Shelving.TestCase


# SIGKILL


class Kicks:
    """A front end that replaces its kick, and successive processes that take it. A shelf, a journal
    and a record of the kick in use outlive them."""

    def __init__(self, shelf: Shelf) -> None:
        self._ends = shelf.ends
        self._front_end, self._socket = socket.socketpair()
        self._memory = mmap.mmap(-1, 1 << 18)
        view = memoryview(self._memory)
        self._journal, self._record = view[: 1 << 17], view[1 << 17 : (1 << 17) + (1 << 12)]
        self._in_use = view[(1 << 17) + (1 << 12) :][:8]
        self.sent = 0

    def send(self) -> None:
        """Send one more message; its kick is identified by its size."""
        self.sent += 1
        data = HEADER.pack(Request.SET_VRING_KICK, VERSION, 8) + bytes([self.sent % 256, *bytes(7)])
        with contextlib.closing(marked(self.sent)) as file:
            socket.send_fds(self._front_end, [data], [file.fileno()])

    def record(self) -> tuple[str, int]:
        """Name and number of the kick in use."""
        data = Slots(self._record).load()
        name, number = json.loads(data) if data is not None else ("", 0)
        return name, number

    def serve(self, until: int) -> None:
        """A process: continue from what was left, then take messages until the kick with this
        number."""
        shelf = Shelf([OwnedFd(os.dup(end.fileno())) for end in self._ends], self._in_use[0])

        def switched() -> None:
            self._in_use[0] = shelf.in_use

        shelf.switched = switched
        shelf.load()
        name, number = self.record()
        kick = shelf.adopt(name) if name else None
        assert kick is None or mark(kick) == number, "not the record's descriptor"
        trio.run(self._converse, shelf, kick, number, until)

    async def _converse(self, shelf: Shelf, kick: OwnedFd | None, number: int, until: int) -> None:
        journal, record = Journal(self._journal), Slots(self._record)
        transport = Transport(OwnedFd(os.dup(self._socket.fileno())), shelf, journal)

        async def take(message: Message) -> None:
            nonlocal kick, number
            (fd,) = message.fds
            assert mark(fd) in (number, number + 1), f"{mark(fd)} after {number}"
            record.save(json.dumps([shelf_name(fd), mark(fd)]).encode())
            if kick is not None:
                kick.close()
            kick, number = fd, mark(fd)
            message.release_fds()
            journal.done(None)

        pending = read_pending(journal, {"sequence": 0, "reply": None}, shelf)
        shelf.sweep()
        if pending is not None:
            await settle(transport, pending, take)
            journal.sent()
        while number < until:
            message = await transport.receive()
            assert message is not None
            await take(message)
            journal.sent()

    def close(self) -> None:
        self._front_end.close()
        self._socket.close()


def test_none_of_300_processes_that_are_killed_loses_a_descriptor() -> None:
    chance, restarted = random.Random(1), 0
    with shelves() as shelf:
        kicks = Kicks(shelf)
        for _ in range(300):
            before = kicks.record()[1]
            for _ in range(chance.randrange(1, 12)):
                kicks.send()
            pid = started(lambda: kicks.serve(kicks.sent + 1))
            deadline = time.monotonic() + 10
            while kicks.record()[1] == before and time.monotonic() < deadline:
                time.sleep(0.0002)
            time.sleep(chance.random() * 0.002)
            os.kill(pid, signal.SIGKILL)
            assert ended(pid) == -signal.SIGKILL, "the process failed before it was killed"
            restarted += kicks.record()[1] < kicks.sent
        assert ended(started(lambda: kicks.serve(kicks.sent))) == 0
        assert kicks.record()[1] == kicks.sent
        kicks.close()
    assert restarted > 30, "most were killed with messages to take"
