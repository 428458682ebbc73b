"""A service manager that did not read for a while is told of everything once it reads again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

import pytest
import trio
import trio.testing

from tests.support.end_to_end import LogLines
from vhost_balloon.errors import CommandError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.restart import upgrade
from vhost_balloon.service.systemd import Notifier
from vhost_balloon.store.descriptors import CONNECTION, KEEP_LIMIT, Store
from vhost_balloon.vm.vm import Vm


class Deaf:
    """Stands for the notifier. held: the names that the service manager stores."""

    def __init__(self) -> None:
        self.reads = trio.Event()
        self.held: set[str] = set()

    async def send(self, text: str, fds: Sequence[OwnedFd] = ()) -> bool:
        await self.reads.wait()
        name = text.partition("FDNAME=")[2].partition("\n")[0]
        if text.startswith("FDSTOREREMOVE=1"):
            self.held.discard(name)
        else:
            assert [fd.closed for fd in fds] == [False]
            self.held.add(name)
        return True


@pytest.fixture
async def deaf() -> Deaf:
    return Deaf()


def name(number: int) -> str:
    return f"{CONNECTION}{number}"


async def test_missed_changes_are_sent_once_the_manager_reads(
    deaf: Deaf, autojump_clock: trio.testing.MockClock, log_lines: LogLines
) -> None:
    store = Store(cast(Notifier, deaf), 16)
    kept = {number: OwnedFd(os.eventfd(0)) for number in range(4)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        for _ in range(2):
            began = trio.current_time()
            for number, fd in kept.items():
                await store.keep(name(number), fd)
            await store.remove(name(1))  # the service manager never heard of this one
            assert trio.current_time() - began < 2 * KEEP_LIMIT
            vm = Vm("web1", store=store)
            with pytest.raises(CommandError, match="the service manager does not read"):
                await upgrade.execute(vm, lambda: False, {})
            deaf.reads.set()
            await trio.testing.wait_all_tasks_blocked()
            assert not store.is_behind
            assert deaf.held == {name(0), name(2), name(3)}
            deaf.reads = trio.Event()
            kept[2].close()  # the user closes it before removing it
            await store.remove(name(2))
            deaf.reads.set()
            await trio.testing.wait_all_tasks_blocked()
            assert deaf.held == {name(0), name(3)}
            kept[2] = OwnedFd(os.eventfd(0))
            deaf.reads = trio.Event()
        nursery.cancel_scope.cancel()
    assert log_lines.having("warning: the service manager does not read")
    assert log_lines.having("info: the service manager reads again")
    for fd in kept.values():
        fd.close()
