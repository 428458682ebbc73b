"""Sends and receives vhost-user messages, with their file descriptors, on a trio socket."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from protocol.vhost_user import HEADER, HEADER_SIZE, MAX_FDS

_FD_BYTES = array.array("i").itemsize


class BackEndGone(Exception):
    """The back end closed the connection, perhaps inside a message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: header words, payload, and descriptors, which the receiver owns."""

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)


async def send_bytes(sock: trio.socket.SocketType, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send bytes, with the descriptors attached to the first of them.

    Raises:
        BackEndGone: the back end closed the connection.
    """
    try:
        if fds:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
            data = data[await sock.sendmsg([data], [rights]) :]
        while data:
            data = data[await sock.send(data) :]
    except (BrokenPipeError, ConnectionResetError) as error:
        raise BackEndGone("the back end closed the connection") from error


async def send_message(
    sock: trio.socket.SocketType,
    request: int,
    flags: int,
    payload: bytes = b"",
    fds: Sequence[int] = (),
) -> None:
    """Send header and payload together, as QEMU does."""
    await send_bytes(sock, HEADER.pack(request, flags, len(payload)) + payload, fds)


async def receive_message(sock: trio.socket.SocketType) -> Message:
    """Receive exactly one message: the header first, so as not to read into the next message.

    Raises:
        BackEndGone: end of stream.
    """
    fds: list[int] = []
    try:
        request, flags, size = HEADER.unpack(await _receive_exactly(sock, HEADER_SIZE, fds))
        return Message(request, flags, await _receive_exactly(sock, size, fds), fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


async def _receive_exactly(sock: trio.socket.SocketType, size: int, fds: list[int]) -> bytes:
    data = b""
    while len(data) < size:
        try:
            part, ancillary, _, _ = await sock.recvmsg(
                size - len(data), socket.CMSG_SPACE(MAX_FDS * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError as error:
            raise BackEndGone("the back end closed the connection") from error
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(rights) - len(rights) % _FD_BYTES
                fds.extend(array.array("i", rights[:whole]))
        if not part:
            raise BackEndGone("the back end closed the connection")
        data += part
    return data
