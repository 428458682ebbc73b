"""Telling listening sockets from other descriptors that the previous process left."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.support.end_to_end import open_fds
from vhost_balloon.fds import OwnedFd
from vhost_balloon.service.listeners import bound_path, listening_path


def test_only_a_listening_socket_has_a_listening_path(tmp_path: Path) -> None:
    path = tmp_path / "vm1.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen()
        client.connect(str(path))
        accepted, _ = listener.accept()
        with accepted:
            ours, theirs = OwnedFd(os.dup(listener.fileno())), OwnedFd(os.dup(accepted.fileno()))
            assert (bound_path(ours), listening_path(ours)) == (path, path)
            assert (bound_path(theirs), listening_path(theirs)) == (path, None)
            ours.close()
            theirs.close()


def test_looking_at_a_descriptor_leaks_none() -> None:
    """A restart looks at everything stored, possibly thousands of descriptors."""
    unbound, inet = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET)
    fds = [
        OwnedFd(os.eventfd(0)),
        OwnedFd(os.memfd_create("memory")),
        OwnedFd(unbound.detach()),
        OwnedFd(inet.detach()),
    ]
    before = open_fds()
    assert [bound_path(fd) for fd in fds] == [None] * 4
    assert [listening_path(fd) for fd in fds] == [None] * 4
    assert open_fds() == before
    for fd in fds:
        fd.close()
