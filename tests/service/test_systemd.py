"""Notifications, received by a datagram socket in place of the service manager's."""

from __future__ import annotations

import array
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.end_to_end import LogLines
from vhost_balloon.fds import OwnedFd
from vhost_balloon.service import systemd
from vhost_balloon.service.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The receiving end, bound to a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    """The sending end."""
    notifier = Notifier(manager.getsockname())
    yield notifier
    notifier.close()


def take(manager: socket.socket) -> tuple[str, list[OwnedFd]]:
    """The next message."""
    room = socket.CMSG_SPACE(8 * 4)
    data, ancillary, _, _ = manager.recvmsg(4096, room)
    numbers = array.array("i", b"".join(content for _, _, content in ancillary))
    return data.decode(), [OwnedFd(number) for number in numbers]


def fill(notifier: Notifier) -> int:
    """Fill the receiver's queue; return how many messages fit."""
    return next(number for number in range(10000) if not notifier.try_send("STATUS=full"))


async def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    assert not notifier
    assert not await notifier.send(systemd.READY)
    assert not notifier.try_send(systemd.READY)
    notifier.close()


@pytest.mark.parametrize("abstract", [False, True])
async def test_messages_arrive_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    path = f"vhost-balloon-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(("\0" if abstract else "") + path)
        monkeypatch.setenv("NOTIFY_SOCKET", ("@" if abstract else "") + path)
        notifier = Notifier()
        assert await notifier.send(systemd.status("2 VMs,\n1 attached"))
        assert notifier.try_send(systemd.STOPPING)
        assert [take(manager) for _ in "12"] == [
            ("STATUS=2 VMs,\\n1 attached", []),
            ("STOPPING=1", []),
        ]
        notifier.close()
        notifier.close()


@pytest.mark.parametrize(
    "address",
    ["here", "vsock:2:1", "/nowhere", "/" + 200 * "x", "/dev/null", "/a\0b", "@", "@nobody"],
)
async def test_an_unusable_address_counts_as_none(address: str, log_lines: LogLines) -> None:
    notifier = Notifier(address)
    assert not notifier
    assert not await notifier.send(systemd.READY)
    assert len(log_lines.having("warning", "NOTIFY_SOCKET")) == 1


async def test_a_descriptor_for_the_store(manager: socket.socket, notifier: Notifier) -> None:
    mine, other = map(OwnedFd, os.pipe())
    await notifier.send(systemd.fdstore(".web1.kick"), [mine])
    text, (stored,) = take(manager)
    assert text == "FDSTORE=1\nFDNAME=.web1.kick\nFDPOLL=0"
    os.write(other.fileno(), b"same pipe")
    assert os.read(stored.fileno(), 99) == b"same pipe"
    await notifier.send(systemd.fdstore_remove(".web1.kick"))
    assert take(manager) == ("FDSTOREREMOVE=1\nFDNAME=.web1.kick", [])


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "ü", "x" * 256])
def test_names_that_systemd_would_drop(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a descriptor's name"):
        systemd.fdstore(name)
    with pytest.raises(ValueError, match="cannot be a descriptor's name"):
        systemd.fdstore_remove(name)


def test_reloading_carries_the_clock() -> None:
    match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", systemd.reloading())
    assert match
    now = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(int(match[1]) / 1e6 - now) < 5


async def test_a_full_queue_is_waited_for_in_order(
    manager: socket.socket, notifier: Notifier
) -> None:
    filled = fill(notifier)
    assert filled > 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.send, "first")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(notifier.send, "second")
        await trio.testing.wait_all_tasks_blocked()
        assert take(manager)[0] == "STATUS=full"
        assert not notifier.try_send("third"), "it would overtake"
        got = [(await trio.to_thread.run_sync(take, manager))[0] for _ in range(filled + 1)]
    assert got[-2:] == ["first", "second"]


async def test_too_many_descriptors_in_flight_are_tried_again(
    manager: socket.socket,
    notifier: Notifier,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.abc.Clock,
) -> None:
    real, failures = notifier._send, [errno.ETOOMANYREFS, errno.ENOBUFS]

    def send(text: str, fds: list[OwnedFd]) -> bool:
        if failures:
            raise OSError(failures.pop(), "later")
        return real(text, fds)

    monkeypatch.setattr(notifier, "_send", send)
    started = trio.current_time()
    assert await notifier.send("through")
    assert trio.current_time() - started == pytest.approx(2 * systemd.RETRY_PAUSE)
    assert take(manager)[0] == "through"


async def test_a_manager_that_has_gone_is_logged_once(
    manager: socket.socket, notifier: Notifier, log_lines: LogLines
) -> None:
    manager.close()
    assert not await notifier.send("lost")
    assert not notifier.try_send("lost")
    said = [line for line in log_lines.lines if "cannot notify" in line]
    assert len(said) == 1


async def test_the_watchdog_is_fed_at_its_interval_even_past_a_waiting_message(
    manager: socket.socket, notifier: Notifier, autojump_clock: trio.abc.Clock
) -> None:
    manager.setblocking(False)
    async with notifier._lock:
        with trio.move_on_after(3.5):
            await notifier.feed_watchdog(1.0)
    assert [take(manager)[0] for _ in range(4)] == ["WATCHDOG=1"] * 4
    with pytest.raises(BlockingIOError):
        take(manager)


async def test_a_full_queue_does_not_starve_the_watchdog(
    manager: socket.socket, notifier: Notifier, autojump_clock: trio.abc.Clock
) -> None:
    """The queue is full: the next message carries the keep-alive."""
    count = fill(notifier)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.feed_watchdog, 7.5)
        await trio.testing.wait_all_tasks_blocked()
        assert take(manager)[0] == "STATUS=full"
        assert await notifier.send("FDSTOREREMOVE=1\nFDNAME=.1")
        assert [take(manager)[0] for _ in range(count - 1)] == ["STATUS=full"] * (count - 1)
        assert take(manager)[0] == "FDSTOREREMOVE=1\nFDNAME=.1\nWATCHDOG=1"
        assert await notifier.send("STATUS=idle")
        assert take(manager)[0] == "STATUS=idle"
        nursery.cancel_scope.cancel()


async def test_a_full_queue_is_tried_again_at_once(
    manager: socket.socket, notifier: Notifier, autojump_clock: trio.abc.Clock
) -> None:
    """Another process may leave room in it for moments only."""
    count = fill(notifier)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.feed_watchdog, 10.0)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(count):
            take(manager)
        await trio.sleep(2 * systemd.RETRY_PAUSE)
        manager.setblocking(False)
        assert take(manager)[0] == "WATCHDOG=1"
        nursery.cancel_scope.cancel()
