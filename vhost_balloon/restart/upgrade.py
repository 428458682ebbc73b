"""Re-executes this program in place and hands its state over: an upgrade without a pause.

Works with and without a service manager. The new program gets the same descriptors, under the same
names, as a service manager would hand to the next process. Without a service manager the installed
program is first started beside this one, with the same options, to check everything it will need;
with one, a program that fails to start is started again, and the VM waits. Then the connection is
held between two messages, and its state is written to the record. The process stays the same, so
only control clients notice: their connections end. Any failure before the last system call leaves
everything as it was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NoReturn

import trio

from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.log.setup import hand_over as hand_over_log
from vhost_balloon.vm.front_end import FrontEnd
from vhost_balloon.vm.vm import Vm

VARIABLE: Final = "VHOST_BALLOON_HANDOVER"
REST_LIMIT: Final = 2.0
"""Longest time to wait for the connection to rest, in seconds; QEMU waits at most that long."""
ARRIVAL_PAUSE: Final = 0.005
"""Seconds between two checks whether an arriving front end is attached."""
START_LIMIT: Final = 20.0
"""Longest time that the new program may take for its check, in seconds."""
CHECK: Final = "--check-config"


def inherited() -> list[tuple[str, OwnedFd]]:
    """The descriptors that this program handed over to itself, by name. Raises OperatorError."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return []
    try:
        found = [(str(name), OwnedFd(int(number))) for name, number in json.loads(text)]
        for _, fd in found:
            os.set_inheritable(fd.fileno(), False)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise OperatorError(f"{VARIABLE} in the environment is invalid: {error}") from None
    return found


def command() -> list[str]:
    """The command line that started this program."""
    return [sys.executable, *sys.orig_argv[1:]]


async def check(sockets: Mapping[str, int]) -> None:
    """Check that the installed program would start. Raises CommandError.

    sockets: listening sockets that were handed to this process, by name.
    """
    with trio.move_on_after(START_LIMIT):
        try:
            done = await trio.run_process(
                [*command(), CHECK],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=os.environ | {VARIABLE: _table(sockets)},
                pass_fds=list(sockets.values()),
            )
        except OSError as error:
            raise CommandError(f"the new program cannot be started: {error}") from None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise CommandError(f"the new program does not start: {lines[-1]}")
        logger.info("re-executing as %s", done.stdout.decode(errors="replace").strip())
        return
    raise CommandError(f"the new program did not start within {START_LIMIT:g} s")


async def execute(vm: Vm, is_arriving: Callable[[], bool], sockets: Mapping[str, int]) -> NoReturn:
    """Become the new program.

    Raises CommandError if the front end does not read a reply, the system is short of resources, or
    the service manager lags behind, which the new program could not know. Everything continues
    then.
    """
    if vm.store.is_behind:
        raise CommandError("the service manager does not read its messages")
    resting = await _rest(vm, is_arriving)
    try:
        _save(vm)
        kept = {name: fd.fileno() for name, fd in vm.store.kept.items()}
        with _prepared(kept | dict(sockets)):
            arguments = command()
            hand_over_log()
            os.execv(arguments[0], arguments)
    except (OSError, ValueError) as error:  # ValueError: the state does not fit its record
        if resting is not None:
            await resting.release()
        raise CommandError(f"the state cannot be handed over: {error}") from None


def _save(vm: Vm) -> None:
    """Write the whole state to the record. Raises ValueError if it does not fit."""
    assert vm.record is not None
    assert vm.shelf is not None
    vm.save_to(vm.record)
    vm.record.save("shelf", vm.shelf.in_use)
    if vm.front_end is None:
        vm.record.save("connection", None)
    else:
        vm.front_end.keeper.save_all(vm.record)


def _table(entries: Mapping[str, int]) -> str:
    return json.dumps(list(entries.items()))


@contextmanager
def _prepared(entries: Mapping[str, int]) -> Iterator[None]:
    """Prepare signals, environment and descriptors for the new program; undone on exit."""
    # Before the new program handles it, a second SIGHUP would end it.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ[VARIABLE] = _table(entries)
    try:
        for number in entries.values():
            os.set_inheritable(number, True)
        yield
    finally:
        for number in entries.values():
            os.set_inheritable(number, False)
        del os.environ[VARIABLE]
        signal.signal(signal.SIGHUP, before)


async def _rest(vm: Vm, is_arriving: Callable[[], bool]) -> FrontEnd | None:
    """Hold the connection, if there is one, at a moment when no front end is arriving.

    Raises CommandError if that takes too long; the connection continues then.
    """
    resting: FrontEnd | None = None
    waits_for = ""
    with trio.move_on_after(REST_LIMIT):
        while True:
            if vm.front_end is not None and vm.front_end is not resting:
                resting = vm.front_end
                waits_for = "the front end does not take its reply"
                await resting.hold()
            elif vm.front_end is None and is_arriving():
                waits_for = "a front end is arriving"
                await trio.sleep(ARRIVAL_PAUSE)
            else:
                return vm.front_end
    if resting is not None:
        await resting.release()
    raise CommandError(waits_for)
