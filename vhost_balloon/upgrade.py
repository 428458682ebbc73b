"""Re-executes this program in place, with all its descriptors: for an upgrade without a pause.

Works with a service manager and without one. First the program that is installed now is started
beside this one, with the same options, to check everything that it will need. Then all connections
come to a rest between two messages, their state is written to records, and a table of what each
inherited descriptor is goes along in a memory file. The process stays the same, so nobody outside
notices but control clients, whose connections end. Until the last system call, whatever fails
leaves everything as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.fds import OwnedFd, spare_descriptors
from vhost_balloon.log import logger
from vhost_balloon.log_setup import hand_over as hand_over_log
from vhost_balloon.record import Record
from vhost_balloon.sockets import Sockets
from vhost_balloon.store import RECORD_PREFIX, SPARE, name_of
from vhost_balloon.vm import Machine, Vm

if TYPE_CHECKING:
    from vhost_balloon.backend import FrontEndConnection
    from vhost_balloon.inert import InertConnection

VARIABLE: Final = "VHOST_BALLOON_HANDOVER"
REST_LIMIT: Final = 2.0
"""Seconds until all connections are at rest; QEMU waits that long at most."""
ARRIVAL_PAUSE: Final = 0.005
"""Seconds until a look at whether a front end that is being accepted is attached."""
START_LIMIT: Final = 20.0
"""Seconds that the new program may take to check what it needs."""
CHECK: Final = "--check-config"


def inherited() -> list[tuple[str, OwnedFd]]:
    """What this program handed over to itself, by name. Raises OperatorError if it is damaged."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return []
    try:
        table = OwnedFd(int(text))
        with contextlib.closing(table):
            entries = json.loads(os.pread(table.fileno(), os.fstat(table.fileno()).st_size, 0))
        found = [(str(name), OwnedFd(int(number))) for name, number in entries]
        for _, fd in found:
            os.set_inheritable(fd.fileno(), False)
    except (OSError, ValueError, TypeError) as error:
        raise OperatorError(f"{VARIABLE} in the environment: {error}") from None
    return found


class Handover:
    """Collects what the new program is to have: descriptors by name."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, int]] = []
        self._names: set[str] = set()

    def name(self, fd: OwnedFd) -> str:
        """Hand a descriptor over; its name is the store's, if it has one."""
        name = name_of(fd) or f".{fd.fileno()}x"
        self.add(name, fd.fileno())
        return name

    def add(self, name: str, number: int) -> None:
        if name not in self._names:
            self._names.add(name)
            self._entries.append((name, number))

    def table(self) -> OwnedFd:
        """The table, in a memory file. Raises OSError."""
        fd = OwnedFd(os.memfd_create("vhost-balloon handover"))
        os.write(fd.fileno(), json.dumps(self._entries).encode())
        self._entries.append(("", fd.fileno()))
        return fd

    def numbers(self) -> list[int]:
        """All descriptors, the table included."""
        return [number for _, number in self._entries]

    def outlive_exec(self, does: bool) -> None:
        """Whether all of it, the table included, outlives an exec."""
        for number in self.numbers():
            os.set_inheritable(number, does)


def command() -> list[str]:
    """This program's command line, as it was started."""
    return [sys.executable, *sys.orig_argv[1:]]


async def check(machine: Machine, sockets: Sockets) -> None:
    """See that the program as it is installed now has all that it needs. Raises CommandError."""
    records = sum(vm.record is None for vm in machine.vms.values())
    handover = Handover()
    for name, number in sockets.handed_over():
        handover.add(name, number)
    with trio.move_on_after(START_LIMIT):
        try:
            # A record is a file and a mapping, each with a descriptor.
            with (
                spare_descriptors(SPARE + 2 * records),
                contextlib.closing(handover.table()) as table,
            ):
                done = await trio.run_process(
                    [*command(), CHECK],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=os.environ | {VARIABLE: str(table.fileno())},
                    pass_fds=handover.numbers(),
                )
        except OSError as error:
            raise CommandError(f"the new program cannot be started: {error}") from None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise CommandError(f"the new program does not start: {lines[-1]}")
        logger.info("re-executing as %s", done.stdout.decode(errors="replace").strip())
        return
    raise CommandError(f"the new program did not start within {START_LIMIT:g} s")


async def execute(machine: Machine, sockets: Sockets) -> NoReturn:
    """Become the new program. Raises CommandError if that cannot be, because a front end does not
    take a reply or the system has nothing left; all goes on then as it was."""
    resting = await _rest(machine)
    made: list[Record] = []
    try:
        handover = Handover()
        for vm in machine.vms.values():
            _hand_over(vm, handover, made)
        if machine.store.pipe is not None:
            handover.name(machine.store.pipe.fd)
        if machine.store.arguments is not None:
            handover.name(machine.store.arguments)
        for name, number in sockets.open_now():
            handover.add(name, number)
        table = handover.table()
        with contextlib.closing(table), spare_descriptors(SPARE), _prepared(handover, table):
            arguments = command()
            hand_over_log()
            os.execv(arguments[0], arguments)
    except (OSError, ValueError) as error:  # a state that does not fit its record is a ValueError
        for record in made:
            record.close()
        await _go_on(resting)
        raise CommandError(f"the state cannot be handed over: {error}") from None


@contextmanager
def _prepared(handover: Handover, table: OwnedFd) -> Iterator[None]:
    """What is to be otherwise at the new program's start."""
    # Until it listens for it, a second SIGHUP would end it.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ[VARIABLE] = str(table.fileno())
    try:
        handover.outlive_exec(True)
        yield
    finally:
        handover.outlive_exec(False)
        del os.environ[VARIABLE]
        signal.signal(signal.SIGHUP, before)


async def _go_on(resting: Iterable[FrontEndConnection | InertConnection]) -> None:
    for connection in resting:
        await connection.go_on()


async def _rest(machine: Machine) -> list[FrontEndConnection | InertConnection]:
    """Have all connections at rest, nobody arriving, and nothing left to remove from the store.

    Raises CommandError if they do not come to a rest in time; they go on then.
    """
    resting: dict[FrontEndConnection | InertConnection, None] = {}
    waits_for = ""
    with trio.move_on_after(REST_LIMIT):
        while True:
            restless = {
                vm.id: vm.front_end
                for vm in machine.vms.values()
                if vm.front_end is not None and vm.front_end not in resting
            }
            for name, connection in restless.items():
                waits_for = f"the front end of {name} does not take its reply"
                resting[connection] = None
                await connection.rest()
                connection.keeper.flush()
            if machine.arriving():
                waits_for = "a front end arrives"
                await trio.sleep(ARRIVAL_PAUSE)
            elif machine.store.removing:
                waits_for = "the service manager does not take what it is told"
                await machine.store.settle()
            elif not restless:
                return list(resting)  # and nothing was waited for since all of it was seen
    await _go_on(resting)
    raise CommandError(waits_for)


def _hand_over(vm: Vm, handover: Handover, made: list[Record]) -> None:
    """Put a VM's state on its record, or on one that is made for this and appended to made.

    Raises OSError, or ValueError if it does not fit.
    """
    record = vm.record
    if record is None:
        record = Record.create()
        made.append(record)
        handover.add(f"{RECORD_PREFIX}{record.fd.fileno()}x", record.fd.fileno())
    else:
        handover.name(record.fd)
    vm.save_to(record)
    if vm.front_end is not None:
        vm.front_end.keeper.save_all(record, handover.name)
