"""Connects a guest's console to this terminal."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LEAVE: Final = b"\x1d"  # Ctrl-]


def attach(console: socket.socket) -> None:
    """Copy between this terminal and the console until Ctrl-], the end of input or of the guest."""
    print("Ctrl-] ends the guest.", file=sys.stderr)
    console.setblocking(True)
    either = select.poll()
    either.register(console, select.POLLIN)
    either.register(sys.stdin, select.POLLIN)
    with _raw(sys.stdin.fileno()):
        while True:
            ready = dict(either.poll())
            if console.fileno() in ready:
                data = console.recv(65536)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
            if sys.stdin.fileno() in ready:
                typed = os.read(sys.stdin.fileno(), 4096)
                if not typed or _LEAVE in typed:
                    return
                console.sendall(typed)


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Send every key to the guest; leave a descriptor that is not a terminal unchanged."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
