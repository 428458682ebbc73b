"""VMs stay known while the folders of their sockets cannot be read."""

from __future__ import annotations

import errno
from pathlib import Path
from threading import Event

import pytest
import trio
from trio.testing import MockClock

from tests.support.end_to_end import LogLines
from tests.support.fakes.host_vms import answering, daemons, good
from tests.support.fakes.policed_daemon import PolicedDaemon
from tests.support.fakes.unreadable import unreadable
from tests.support.helpers import GIB
from vhost_balloon import threads
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import CommandError
from vhost_balloon.hub import known
from vhost_balloon.hub.folders import look
from vhost_balloon.hub.known import HANGS
from vhost_balloon.hub.policed import PolicedVms
from vhost_balloon.hub.vms import HUB_PLACES, Host
from vhost_balloon.policy.settings import PolicySettings
from vhost_balloon.threads import PATIENCE


@pytest.fixture
def clock() -> MockClock:
    """Time jumps after 0.2 s without activity; threads take less."""
    return MockClock(autojump_threshold=0.2)


def vms_of(folder: Path) -> PolicedVms:
    return PolicedVms([folder], InternalErrors(HUB_PLACES))


# The metrics


async def test_a_file_system_that_hangs_costs_no_figures_of_vms_with_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(threads, "PATIENCE", 0.5)
    host, released = Host([tmp_path], InternalErrors(HUB_PLACES)), Event()
    closing = answering(b'{"return": 5}\n')  # which ends its connection
    async with daemons(tmp_path, {"web1": good(), "web2": closing}):
        assert (dict(await host.snapshots()))["web1"] is not None
        with monkeypatch.context() as patch:
            patch.setattr(known, "look", lambda *_: released.wait(30) and look([]))
            for _ in range(2):
                began = trio.current_time()
                found = dict(await host.snapshots())
                assert [name for name, document in found.items() if document] == ["web1"]
                assert trio.current_time() - began < 2
        released.set()
        assert (dict(await host.snapshots()))["web1"] is not None
    host.close()
    text = "the folders of control sockets cannot be read: their file system hangs"
    assert [line for line in log_lines.lines if "web2" not in line] == [f"warning: {text}"]


async def test_vms_of_a_folder_that_cannot_be_read_do_not_vanish_from_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    host = Host([tmp_path], InternalErrors(HUB_PLACES))
    async with daemons(tmp_path, {"web1": good(), "web2": answering(b'{"return": 5}\n')}):
        assert (dict(await host.snapshots())).keys() == {"web1", "web2"}
        unreadable(tmp_path, monkeypatch, errno.EMFILE)
        found = dict(await host.snapshots())
        assert found["web1"] is not None
        assert found["web2"] is None
    host.close()
    assert log_lines.having(f"warning: {tmp_path} cannot be read: Too many open files")


# The policy


async def test_folders_that_hang(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VMs with a connection are asked as before; opening one might stop the hub."""
    vms, asked = vms_of(tmp_path), trio.Event()
    streams: list[trio.SocketStream] = []
    fakes = {name: PolicedDaemon() for name in ("web1", "web2")}

    async def behave(stream: trio.SocketStream) -> None:
        streams.append(stream)
        await fakes["web2"].behave(stream)

    def hang(*_: object) -> None:
        trio.from_thread.run_sync(asked.set)
        trio.from_thread.run(trio.sleep_forever)

    async with daemons(tmp_path, {"web1": fakes["web1"].behave, "web2": behave}):
        assert (await vms.look(PolicySettings(), ())).keys() == {"web1", "web2"}
        await streams[0].aclose()
        monkeypatch.setattr(known, "look", hang)
        for _ in range(2):
            began = trio.current_time()
            assert (await vms.look(PolicySettings(), ())).keys() == {"web1"}
            assert trio.current_time() - began < PATIENCE + 0.5
            assert await vms.order({"web1": GIB}) == {}
            assert vms.left_out == {"web2": "the file system of its socket hangs"}
            assert vms.problems == [HANGS]
        with pytest.raises(CommandError, match=f"^Device 'web3' is not known: {HANGS}$"):
            await vms.hold("web3", None)
        vms.close()
        assert vms.problems == []
    assert asked.is_set()


async def test_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vms, fake = vms_of(tmp_path), PolicedDaemon()
    text = f"{tmp_path} cannot be read: Too many open files"
    async with daemons(tmp_path, {"web1": fake.behave}):
        with monkeypatch.context() as patch:
            unreadable(tmp_path, patch, errno.EMFILE)
            with pytest.raises(CommandError, match=f"'web1' is not known: {text}"):
                await vms.hold("web1", None)
            assert await vms.look(PolicySettings(), ()) == {}
        assert (await vms.look(PolicySettings(), ())).keys() == {"web1"}
        assert vms.problems == []
        unreadable(tmp_path, monkeypatch, errno.EMFILE)
        for _ in range(2):
            assert (await vms.look(PolicySettings(), ())).keys() == {"web1"}
            assert vms.problems == [text]
        await vms.hold("web1", None)
    vms.close()
    assert fake.connections == 1
