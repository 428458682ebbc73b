"""A VM that ended while its daemon was stopped: what the store holds of it, and how it is freed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest

from tests.rig import process
from tests.rig.systemd import WEB1, SystemdHost
from tests.support.helpers import MIB, readable
from tests.support.vms.crowd import Crowd

USED = 256 * MIB

_libc = ctypes.CDLL(None, use_errno=True)
_IN_DELETE_SELF: Final = 0x400  # linux/inotify.h


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    yield systemd_host
    systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


@contextmanager
def end_of_memory(pid: int) -> Iterator[int]:
    """A descriptor that is readable once the memory of a process's one simulated guest is freed.

    inotify tells when a memory file's last descriptor is closed, including those that are stored
    or in flight, and holds none itself. The machine's figures would also have what others use.
    """
    links = process.fds(pid).items()
    paths = [f"/proc/{pid}/fd/{number}" for number, link in links if "simulated-guest-ram" in link]
    assert len({os.stat(path).st_ino for path in paths}) == 1
    watch = _libc.inotify_init1(os.O_CLOEXEC)
    try:
        if _libc.inotify_add_watch(watch, paths[0].encode(), _IN_DELETE_SELF) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
        yield watch
    finally:
        os.close(watch)


@pytest.mark.parametrize("service_first", [True, False], ids=["service first", "at once"])
def test_stopping_socket_and_service_frees_the_memory_of_a_vm_that_died(
    host: SystemdHost, service_first: bool
) -> None:
    host.systemctl("start", WEB1.socket)
    with ExitStack() as stack:
        with Crowd(host) as crowd:
            crowd.call("attach", sockets={WEB1.vm: str(host.path(WEB1.path))}, ram=2 * USED)
            crowd.call("fill", size=USED)
            end = stack.enter_context(end_of_memory(crowd.pid))
            if service_first:
                host.systemctl("stop", WEB1.service)
            else:
                host.systemctl("stop", *WEB1.units)
            assert not readable(end), "the VM is there"
        if service_first:
            assert not readable(end, 0.5), "the store holds on to it"
            host.systemctl("stop", WEB1.socket)
        assert readable(end, 10)
