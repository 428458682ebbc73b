"""The shelf: descriptors that outlive a process in socket pairs, whatever step it dies at."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import mmap
import os
import random
import resource
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
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
from tests.end_to_end import open_fds
from tests.helpers import memfd
from vhost_balloon import shelf as module
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.journal import Journal
from vhost_balloon.message import Message
from vhost_balloon.resume import Pending, settle
from vhost_balloon.shelf import (
    BUFFER,
    MAX_PACKET,
    SPARE_PACKETS,
    Shelf,
    ShelvedFd,
    _Pair,
    shelf_name,
)
from vhost_balloon.slots import Slots
from vhost_balloon.transport import Transport

NOBODY: Final = 65534


def marked(mark: int) -> OwnedFd:
    """A file that is known by its size."""
    return memfd(mark)


def mark(fd: OwnedFd) -> int:
    return os.fstat(fd.fileno()).st_size


def names(fds: list[OwnedFd]) -> list[str]:
    found = [shelf_name(fd) for fd in fds]
    assert all(found)
    return [name or "" for name in found]


def successor(shelf: Shelf, in_use: int | None = None) -> Shelf:
    """The shelf as the process after this one finds it; this one's descriptors are its own."""
    ends = [OwnedFd(os.dup(end.fileno())) for end in shelf.ends]
    return Shelf(ends, shelf.in_use if in_use is None else in_use)


@contextmanager
def shelves(buffer: int = BUFFER) -> Iterator[Shelf]:
    """A new shelf; buffer is what its pairs hold (bytes)."""
    with mock.patch.object(module, "BUFFER", buffer):
        shelf = Shelf.create()
        try:
            yield shelf
        finally:
            shelf.close()


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with shelves() as shelf:
        yield shelf


def packets(shelf: Shelf, pair: int) -> list[tuple[int, int]]:
    """Number and bits of what lies in a pair."""
    return [(number, bits) for number, bits, _ in shelf._pairs[pair].look()]


# Names


def test_a_name_leads_to_the_same_file_in_the_next_process(shelf: Shelf) -> None:
    first = shelf.put([marked(1), marked(2)])
    second = shelf.put([marked(3)])
    assert names(first + second) == ["1.0", "1.1", "2.0"]
    assert [mark(fd) for fd in first + second] == [1, 2, 3]
    first[0].close()
    next_one = successor(shelf)
    next_one.load()
    assert [mark(next_one.adopt(name)) for name in ("1.1", "2.0")] == [2, 3]
    assert names(next_one.put([marked(4)])) == ["3.0"]
    next_one.close()


def test_what_is_not_on_it_is_lost(shelf: Shelf) -> None:
    (fd,) = shelf.put([marked(1)])
    for name in ("1.1", "2.0", "", "1", "x.y", "None"):
        with pytest.raises(StateError, match="lost"):
            shelf.adopt(name)
    fd.close()
    with pytest.raises(StateError, match="lost"):
        shelf.adopt("1.0")


def test_what_is_named_twice_is_adopted_twice(shelf: Shelf) -> None:
    shelf.put([marked(7)])
    next_one = successor(shelf)
    next_one.load()
    first, second = next_one.adopt("1.0"), next_one.adopt("1.0")
    assert first.fileno() != second.fileno()
    first.close()
    assert mark(next_one.adopt("1.0")) == mark(second) == 7
    next_one.close()


def test_what_nobody_adopts_is_swept_and_no_descriptor_is_left() -> None:
    before = open_fds()
    with shelves() as shelf:
        fds = shelf.put([marked(1), marked(2)])
        next_one = successor(shelf)
        used = open_fds()
        next_one.load()
        next_one.load()
        assert open_fds().total() == used.total() + 2, "what was looked at before is closed"
        next_one.sweep()
        assert open_fds() == used
        next_one.close()
        for fd in fds:
            fd.close()
    assert open_fds() == before


def test_only_what_is_on_the_shelf_has_a_name(shelf: Shelf) -> None:
    assert shelf_name(marked(1)) is None
    (fd,) = shelf.put([marked(1)])
    assert isinstance(fd, ShelvedFd)
    fd.close()
    fd.close()
    assert shelf.users == {}


def test_ends_that_are_no_sockets() -> None:
    before = open_fds()
    with shelves() as shelf, pytest.raises(OSError, match="socket"):
        Shelf([*(OwnedFd(os.dup(end.fileno())) for end in shelf.ends[:3]), marked(1)])
    assert open_fds() == before


def test_eventfds_come_back_with_their_counts(shelf: Shelf) -> None:
    counts = [0, 1, 7, (1 << 64) - 2]
    fds = shelf.put([OwnedFd(os.eventfd(0, os.EFD_NONBLOCK)) for _ in counts])
    semaphore = shelf.put([OwnedFd(os.eventfd(5, os.EFD_NONBLOCK | os.EFD_SEMAPHORE))])
    for fd, count in zip(fds, counts, strict=True):
        if count:
            os.eventfd_write(fd.fileno(), count)
    found = names(fds + semaphore)
    next_one = successor(shelf)
    for fd in fds + semaphore:
        fd.close()
    next_one.load()
    *plain, last = (next_one.adopt(name) for name in found)
    for fd, count in zip(plain, counts, strict=True):
        if count:
            assert os.eventfd_read(fd.fileno()) == count
        else:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fd.fileno())
    assert [os.eventfd_read(last.fileno()) for _ in range(5)] == [1] * 5
    with pytest.raises(BlockingIOError):
        os.eventfd_read(last.fileno())
    next_one.close()


def test_where_a_dead_reader_stopped_counts_for_nobody(shelf: Shelf) -> None:
    for number in range(1, 6):
        shelf.put([marked(number)])
    reader = successor(shelf)
    looking = reader._pairs[0].look()
    for _ in range(3):  # it dies in the middle: its offset stays with the socket
        next(looking)
    next_one = successor(shelf)
    next_one.load()
    assert [mark(next_one.adopt(f"{number}.0")) for number in range(1, 6)] == [1, 2, 3, 4, 5]
    next_one.close()
    reader.close()


def test_an_epoll_descriptor_with_20000_entries(shelf: Shelf) -> None:
    """The most that a front end makes of one descriptor; nothing looks into it."""
    files = [OwnedFd(os.eventfd(0)) for _ in range(40)]
    with select.epoll() as epoll:
        for file in files:  # an entry is a file and a number
            copies = [OwnedFd(os.dup(file.fileno())) for _ in range(500)]
            for copy in copies:
                epoll.register(copy.fileno(), select.EPOLLIN)
            del copies
        (fd,) = shelf.put([OwnedFd(os.dup(epoll.fileno()))])
    next_one = successor(shelf)
    fd.close()
    next_one.load()
    assert "eventpoll" in os.readlink(f"/proc/self/fd/{next_one.adopt('1.0').fileno()}")
    next_one.close()


# Compaction


def test_what_piles_up_is_dropped_and_what_is_used_stays(shelf: Shelf) -> None:
    kept = shelf.put([marked(1), marked(2), marked(3)])
    kept[1].close()
    switched: list[int] = []
    shelf.switched = lambda: switched.append(shelf.in_use)
    for number in range(1000):
        (fd,) = shelf.put([marked(number)])
        fd.close()
        assert shelf._pairs[shelf.in_use].packets <= 2 * 3 + SPARE_PACKETS + 1
    assert len(switched) > 10
    assert set(switched) == {0, 1}
    assert packets(shelf, 1 - shelf.in_use) == []
    next_one = successor(shelf)
    next_one.load()
    assert (mark(next_one.adopt("1.0")), mark(next_one.adopt("1.2"))) == (1, 3)
    with pytest.raises(StateError):
        next_one.adopt("1.1")
    assert names(next_one.put([marked(1)])) == ["1002.0"]
    next_one.close()


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_a_number_is_never_used_again(restarts: int) -> None:
    """Also if its packet went with those that nobody used any more."""
    with shelves() as shelf:
        for _ in range(SPARE_PACKETS + 1):
            shelf.put([marked(1)])[0].close()
        last = SPARE_PACKETS + 1
        shelf._compact()
        processes = [shelf]
        for _ in range(restarts):
            processes.append(successor(processes[-1]))
            processes[-1].load()
            processes[-1].sweep()
        assert names(processes[-1].put([marked(1)])) == [f"{last + 1}.0"]
        for process in processes:
            process.close()


def test_numbers_of_both_pairs_count(shelf: Shelf) -> None:
    shelf.put([marked(1)])
    shelf._pairs[1].send(9, 1, [shelf.ends[0].fileno()])
    next_one = successor(shelf)
    next_one.load()
    assert names(next_one.put([marked(2)])) == ["10.0"]
    next_one.close()


def test_a_kick_that_is_replaced_3000_times_and_the_memory_beside_it() -> None:
    """A restart in between, now and then; the process before each one is still open."""
    with shelves() as first:
        shelf, memory_name, count = first, names(first.put([marked(4096)]))[0], 0
        (kick,) = first.put([marked(1)])
        for number in range(2, 3002):
            (fresh,) = shelf.put([marked(number)])
            kick.close()
            kick = fresh
            if number % 250 == 0:
                name, before = names([kick])[0], shelf
                shelf = successor(before)
                shelf.load()
                kick = shelf.adopt(name)
                assert mark(kick) == number
                assert mark(shelf.adopt(memory_name)) == 4096
                shelf.sweep()
                before.close()
                count += 1
        assert count == 12
        assert mark(kick) == 3001
        shelf.close()


def fill(shelf: Shelf) -> list[OwnedFd]:
    """Put single descriptors on it until there is no room."""
    found: list[OwnedFd] = []
    extra = marked(1)
    while True:
        fd = OwnedFd(os.dup(extra.fileno()))
        try:
            found += shelf.put([fd])
        except BlockingIOError:
            assert not fd.closed, "it is the caller's still"
            return found


def test_a_shelf_that_is_full_refuses_and_forgets_nothing() -> None:
    with shelves(20_000) as shelf:
        fds = fill(shelf)
        assert len(fds) > 10
        next_one = successor(shelf)
        next_one.load()
        assert [mark(next_one.adopt(name)) for name in names(fds)] == [1] * len(fds)
        next_one.close()
        fds.pop().close()
        fds.pop().close()
        (fd,) = shelf.put([marked(5)])
        next_one = successor(shelf)
        next_one.load()
        assert mark(next_one.adopt(names([fd])[0])) == 5
        next_one.close()


def test_all_memory_slots_and_rings_fit() -> None:
    """The buffer that a host gives without being asked for more (net.core.wmem_max)."""
    with shelves(212_992) as shelf:
        fds = [fd for _ in range(509 + 15) for fd in shelf.put([marked(1)])]
        shelf._compact()
        assert len(fds) == len(shelf.users) == 524


def test_a_pile_that_cannot_be_moved_does_not_hold_up_what_has_room(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = shelf.put([marked(1)])
    for _ in range(SPARE_PACKETS + 2):
        shelf.put([marked(1)])[0].close()
    send = _Pair.send

    def short(pair: _Pair, number: int, bits: int = 0, fds: tuple[int, ...] = ()) -> None:
        if pair is shelf._pairs[1] and bits:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        send(pair, number, bits, fds)

    monkeypatch.setattr(_Pair, "send", short)
    (fd,) = shelf.put([marked(2)])
    assert shelf.in_use == 0
    assert packets(shelf, 1) == [], "what lies there would count as in flight"
    next_one = successor(shelf)
    next_one.load()
    assert [mark(next_one.adopt(name)) for name in names([*kept, fd])] == [1, 2]
    next_one.close()


# Limits


def test_descriptors_that_do_not_fit_are_an_error_and_nothing_is_taken_over(shelf: Shelf) -> None:
    shelf.put([marked(number) for number in range(1, 7)])
    shelf.put([marked(7)])
    next_one = successor(shelf)
    used = open_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    spare: list[int] = []
    try:
        with suppress(OSError):
            while True:
                spare.append(os.dup(0))
        for _ in range(3):
            os.close(spare.pop())
        with pytest.raises(OSError, match="Too many open files"):
            next_one.load()
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_fds() == used
    next_one.load()
    assert mark(next_one.adopt("2.0")) == 7
    next_one.close()


def started(run: Callable[[], None]) -> int:
    """Run in a child; its number."""
    pid = os.fork()
    if pid == 0:
        gc.disable()  # it would touch, and so copy, all memory
        code = 99
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """A child's exit status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(os.getuid() != 0, reason="another user's limit: needs root")
def test_too_many_descriptors_in_flight() -> None:
    """The kernel counts them by user; root is exempt."""

    def run() -> None:
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 50
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        os.setresuid(NOBODY, NOBODY, NOBODY)
        shelf, elsewhere, fds = Shelf.create(), socket.socketpair(), [marked(2)]
        (kept,) = shelf.put([marked(1)])
        with suppress(OSError):
            while True:
                socket.send_fds(elsewhere[0], [b"x"], [kept.fileno()] * 253)
        with pytest.raises(OSError, match="Too many references"):
            shelf.put(fds)
        assert not fds[0].closed
        assert packets(shelf, 1) == [], "what lies there would count as well"
        next_one = successor(shelf)
        next_one.load()
        assert mark(next_one.adopt("1.0")) == 1
        elsewhere[1].recv(100)
        elsewhere[1].recv(100)
        assert names(shelf.put(fds)) == ["2.0"]

    assert ended(started(run)) == 0


# Death at any step


class Died(Exception):
    """The process ends here."""


@contextmanager
def dying(shelf: Shelf, at: int) -> Iterator[list[int]]:
    """End at the step (from 0) of what sends into a pair, empties one, or says which is in use;
    yields the steps that were taken."""
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
    """The shelf after a death; it has all that is used."""
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
                next_process(stack, shelf, recorded[0], used)  # it may die as well
                next_one = next_process(stack, shelf, recorded[0], used)
                (fd,) = next_one.put([marked(9)])
                assert names([fd]) == ["6.0"]
                next_one._compact()
                assert mark(next_process(stack, next_one, next_one.in_use, used).adopt("6.0")) == 9
        if is_whole:
            return
    pytest.fail("it never came to its end")


class Shelving(RuleBasedStateMachine):
    """One process after the other over the same ends. A record names what is in use."""

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
        """At step at, if any, the process dies."""
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
            assert not numbers & self.given, "a number is used again"
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
        """Everything is closed but what the service manager has; the next process goes on."""
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
    """A front end that replaces its kick, and one process after the other that takes it. What
    outlives them is a shelf, a journal, and a record of which kick is in use."""

    def __init__(self, shelf: Shelf) -> None:
        self._ends = shelf.ends
        self._front_end, self._socket = socket.socketpair()
        self._memory = mmap.mmap(-1, 1 << 18)
        view = memoryview(self._memory)
        self._journal, self._record = view[: 1 << 17], view[1 << 17 : (1 << 17) + (1 << 12)]
        self._in_use = view[(1 << 17) + (1 << 12) :][:8]
        self.sent = 0

    def send(self) -> None:
        """One more message; its kick is known by its size."""
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
        """A process: take what was left, then messages, until the kick with this number."""
        shelf = Shelf([OwnedFd(os.dup(end.fileno())) for end in self._ends], self._in_use[0])

        def switched() -> None:
            self._in_use[0] = shelf.in_use

        shelf.switched = switched
        shelf.load()
        name, number = self.record()
        kick = shelf.adopt(name) if name else None
        assert kick is None or mark(kick) == number, "another descriptor than the record's"
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

        pending = Pending.read(journal, [0, None], shelf)
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
            assert ended(pid) == -signal.SIGKILL, "it failed before it was killed"
            restarted += kicks.record()[1] < kicks.sent
        assert ended(started(lambda: kicks.serve(kicks.sent))) == 0
        assert kicks.record()[1] == kicks.sent
        kicks.close()
    assert restarted > 30, "most were killed with messages to take"
