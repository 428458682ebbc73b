"""Re-executes this program in place, with all its descriptors: for an upgrade without a pause.

Works with a service manager and without one. All connections come to a rest between two messages,
their state is written to records, and a table of what each inherited descriptor is goes along in a
memory file. The process stays the same, so nobody outside notices but control clients, whose
connections end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log import logger
from vhost_balloon.record import Record
from vhost_balloon.sockets import Sockets
from vhost_balloon.store import RECORD_PREFIX, name_of
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
"""Seconds that the new program may take to print its version."""


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
        """The table, in a memory file. All of it outlives an exec from now on."""
        fd = OwnedFd(os.memfd_create("vhost-balloon handover", 0))
        os.write(fd.fileno(), json.dumps(self._entries).encode())
        for _, number in self._entries:
            os.set_inheritable(number, True)
        return fd


def command() -> list[str]:
    """This program's command line, as it was started."""
    return [sys.executable, *sys.orig_argv[1:]]


async def check() -> None:
    """See that the program as it is installed now starts. Raises CommandError."""
    with trio.move_on_after(START_LIMIT):
        try:
            done = await trio.run_process(
                [*command(), "--version"], capture_stdout=True, capture_stderr=True, check=False
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
    """Become the new program. Raises CommandError if a front end does not let it, because it does
    not take a reply; all goes on then as it was."""
    await _rest(machine)
    handover = Handover()
    for vm in machine.vms.values():
        _hand_over(vm, handover)
    if machine.store.pipe is not None:
        handover.name(machine.store.pipe.fd)
    for name, number in sockets.open_now():
        handover.add(name, number)
    table = handover.table()
    # Until the new program listens for it, a second SIGHUP would end it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.set_inheritable(table.fileno(), True)
    os.environ[VARIABLE] = str(table.fileno())
    arguments = command()
    sys.stderr.flush()
    os.execv(arguments[0], arguments)


async def _rest(machine: Machine) -> None:
    """Have all connections at rest, nobody arriving, and nothing left to remove from the store."""
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
                return  # and nothing was waited for since all of it was seen
    for connection in resting:
        await connection.go_on()
    raise CommandError(waits_for)


def _hand_over(vm: Vm, handover: Handover) -> None:
    record = vm.record
    if record is None:
        record = Record.create()
        handover.add(f"{RECORD_PREFIX}{record.fd.fileno()}x", record.fd.fileno())
        _kept_open.append(record)
    else:
        handover.name(record.fd)
    vm.save_to(record)
    if vm.front_end is not None:
        vm.front_end.keeper.save_all(record, handover.name)


_kept_open: list[Record] = []
"""Records that were made for the new program: their descriptors must not be closed before it."""
