"""Nothing is discarded while the front end has memory pinned, or while that is unknown."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.rig.qmp import QMPClient
from tests.support.command import daemon
from tests.support.end_to_end import (
    MIB,
    PAGE,
    ByHand,
    Host,
    LogLines,
    by_hand,
    eventually,
    fill,
    is_filled,
    refused,
    serving,
)
from tests.support.fakes.daemons import listening
from tests.support.hostile.pinning import pinned
from tests.support.huge_pages import need_root
from tests.support.made_up_proc import MEMORY, Proc, cannot_pin
from vhost_balloon.memory import asking, pin_guard
from vhost_balloon.memory.pin_guard import PinGuard
from vhost_balloon.memory.pins import PinState


def played(host: Host, monkeypatch: pytest.MonkeyPatch, root: Path) -> Proc:
    """Make the daemon look at a made-up /proc. The simulator's front end is this process."""
    monkeypatch.setattr(host.vm(), "proc", root)
    return Proc(root, os.getpid())


async def offer(guest: ByHand) -> bool:
    """Report a block and inflate a page, both in use. Returns whether they were discarded."""
    block, page = guest.ram.regions[0].start + 32 * MIB, guest.ram.regions[0].end - PAGE
    for _ in range(2):
        fill(guest.ram, block, 4 * MIB)
        fill(guest.ram, page, PAGE)
        await guest.report((block, 4 * MIB))
        await guest.inflate([page // PAGE])
        kept = is_filled(guest.ram, block, 4 * MIB)
        if is_filled(guest.ram, page, PAGE) == kept:
            return not kept
        # The state expired between the two; the next look covers both of a second round.
    raise AssertionError("one of the two was discarded and the other was not")


OFFERED = 4 * MIB + PAGE


async def test_nothing_is_discarded_while_the_front_end_pins_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host:
        proc = played(host, monkeypatch, tmp_path / "proc")
        proc.says(pinned=PAGE)
        async with by_hand(host.path()) as guest:
            assert not await offer(guest)
            assert refused(host.vm()) == {"pinned": OFFERED}
            assert host.vm().counters.freed_bytes == 0
            statistics = host.vm().statistics()
            assert (statistics.reporting_paused, statistics.pause_reasons) == (True, ("pinned",))
            host.vm().paused = True
            assert paused(host) == ("operator", "pinned")
            host.vm().paused = False
            assert paused(host) == ("pinned",)
    assert len(log_lines.having("warning", "vm1", "has memory pinned for a device")) == 1


async def test_nothing_is_discarded_while_the_state_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host:
        proc = played(host, monkeypatch, tmp_path / "proc")
        (proc.folder / "fd").rmdir()
        async with by_hand(host.path(), features=None) as guest:
            await eventually(lambda: host.vm().attached)
            assert paused(host) == ("pins-unknown",), "before any request"
            await guest.start()
            assert not await offer(guest)
            assert refused(host.vm()) == {"pins-unknown": OFFERED}
            assert paused(host) == ("pins-unknown",)
    (line,) = log_lines.having("warning", "vm1", "nothing is discarded")
    assert "it has ended, or /proc does not show it" in line
    assert "if no device is passed through to the guest" in line
    assert "--discard=always" in line


def paused(host: Host) -> tuple[str, ...]:
    return host.vm().statistics().pause_reasons


async def test_an_examiner_that_is_being_started_is_not_a_warning_yet(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    may_answer = threading.Event()

    def serve(connection: socket.socket) -> None:
        while connection.recv(100):
            may_answer.wait(20)
            connection.sendall(b"free\n")

    with listening(short_folder / "socket", serve):
        async with serving(tmp_path) as host:
            (played(host, monkeypatch, tmp_path / "proc").folder / "fd").rmdir()
            monkeypatch.setattr(host.vm(), "examiner", short_folder / "socket")
            async with by_hand(host.path()) as guest:
                assert paused(host) == ("pins-unknown",)
                hint = host.vm().statistics().pause_hint
                assert hint is not None
                assert "has not answered yet" in hint
                may_answer.set()
                await eventually(lambda: paused(host) == ())
                assert host.vm().statistics().pause_hint is None
                assert await offer(guest)
    assert log_lines.having("warning") == []


async def test_an_examiner_that_stays_silent_is_a_warning(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(asking, "START_SECONDS", 0.2)
    with nobody_accepts(short_folder / "socket"):
        async with serving(tmp_path) as host:
            (played(host, monkeypatch, tmp_path / "proc").folder / "fd").rmdir()
            monkeypatch.setattr(host.vm(), "examiner", short_folder / "socket")
            async with by_hand(host.path()) as guest:
                assert not await offer(guest)
                await eventually(lambda: bool(paused(host) and log_lines.having("warning")))
    (line,) = log_lines.having("warning", "vm1", "nothing is discarded")
    assert "the examiner (vhost-balloon-examiner) has not answered yet" in line


@contextmanager
def nobody_accepts(path: Path) -> Iterator[None]:
    """A socket on which nobody accepts."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield


async def test_without_a_front_end_the_hint_is_about_those_that_may_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pin_guard, "may_look", lambda _: False)
    for options, hinted in (
        (["--socket-mode=0660"], True),
        (["--socket-mode=0660", "--discard=always"], False),
        ([], False),  # of the daemon's own user, whose processes it may examine
    ):
        async with serving(tmp_path, *options) as host:
            hint = host.vm().statistics().pause_hint
            assert (hint is not None) == hinted
            assert "run vhost-balloon-examiner" in (hint or "run vhost-balloon-examiner")
            assert paused(host) == ()


async def test_a_front_end_without_pins_is_not_logged(tmp_path: Path, log_lines: LogLines) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        assert await offer(guest)
        assert paused(host) == ()
    assert log_lines.having("warning") == []


async def test_always_discards_without_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, "--discard=always") as host:
        played(host, monkeypatch, tmp_path / "proc").says(pinned=PAGE)
        async with by_hand(host.path()) as guest:
            assert await offer(guest)
            assert refused(host.vm()) == {}
            assert host.vm().counters.freed_bytes == OFFERED
            assert not host.vm().statistics().reporting_paused


async def test_never_discards_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, "--discard=never") as host, by_hand(host.path()) as guest:
        assert not await offer(guest)
        assert refused(host.vm()) == {"discard-never": OFFERED}
        assert host.vm().counters.freed_bytes == 0
        assert host.vm().statistics().pause_reasons == ("discard-never",)


async def test_a_device_that_is_plugged_in_and_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon looks again before a discard, a second after the last look."""
    async with serving(tmp_path) as host:
        proc = played(host, monkeypatch, tmp_path / "proc")
        async with by_hand(host.path()) as guest:
            assert await offer(guest)
            proc.says(pinned=PAGE)
            await look_again(guest, discarded=False)
            proc.says()
            await look_again(guest, discarded=True)


async def look_again(guest: ByHand, *, discarded: bool) -> None:
    """Offer until the state has expired and changed."""
    while await offer(guest) != discarded:
        pass


async def test_real_pins_of_a_real_front_end(tmp_path: Path) -> None:
    """This process is the front end, and has io_uring pin a page."""
    async with serving(tmp_path) as host:
        with ExitStack() as stack:
            try:
                stack.enter_context(pinned(PAGE))
            except OSError as error:
                cannot_pin(str(error))
            async with by_hand(host.path()) as guest:
                assert not await offer(guest)
                assert refused(host.vm()) == {"pinned": OFFERED}
        await eventually(lambda: PinGuard(os.getpid()).check(MEMORY, 0.0) is PinState.FREE)
        await eventually(lambda: not host.vm().attached)
        async with by_hand(host.path()) as guest:
            assert await offer(guest)


@pytest.mark.parametrize("mode", ["auto", "always"])
async def test_a_daemon_in_a_pid_namespace_of_its_own(tmp_path: Path, mode: str) -> None:
    """As in a container: the front end's PID is 0 there. A switch says that no device is there."""
    need_root("ANOTHER PID NAMESPACE")
    control = tmp_path / "control"
    options = (f"--socket-path={tmp_path}/vm1.sock", f"--control-socket={control}")
    container = ("unshare", "--pid", "--fork", "--kill-child")
    with daemon(*options, f"--discard={mode}", within=container, wait_for=control):
        async with by_hand(tmp_path / "vm1.sock") as guest:
            assert await offer(guest) is (mode == "always")
            with QMPClient(control) as qmp:
                (vm,) = qmp.execute("query-vms")
    if mode == "always":
        assert (vm["pause-reasons"], "pause-hint" in vm, vm["refused-bytes"]) == ([], False, {})
    else:
        assert vm["pause-reasons"] == ["pins-unknown"]
        assert "--pid=host" in vm["pause-hint"]
        assert "--discard=always" in vm["pause-hint"]
