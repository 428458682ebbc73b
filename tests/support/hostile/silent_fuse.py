"""A file system whose server falls silent: python -m tests.support.hostile.silent_fuse FOLDER.

It has one file, "file", of SIZE bytes, which can be opened and stat'ed until the server reads a
line from stdin. From then on it takes requests and answers none of them, or, if the line is
"deaf", does not even take them. All who wait are freed when it ends.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Final

import pytest

from tests.support.huge_pages import need_root

SIZE: Final = 64 << 20


# include/uapi/linux/fuse.h
class Operation(IntEnum):
    """Those that are answered, and those that have no answer."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    INIT = 26
    BATCH_FORGET = 42


_IN: Final = struct.Struct("<IIQQIIII")
_OUT: Final = struct.Struct("<IiQ")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY: Final = struct.Struct("<QQQQII")
_INIT: Final = struct.Struct("<IIIIHHIIHHII24x")
_FILE: Final = 2
_ENOSYS: Final = 38
_MNT_DETACH: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _attributes(node: int) -> bytes:
    mode = 0o100666 if node == _FILE else 0o040755
    times = (0,) * 6
    return _ATTR.pack(node, SIZE, SIZE // 512, *times[:3], *times[3:], mode, 1, 0, 0, 0, 4096, 0)


def _answer(operation: int, node: int) -> bytes | int:
    """What a request is answered with; an error number, negative, for most."""
    match operation:
        case Operation.INIT:
            return _INIT.pack(7, 31, 0, 0, 16, 16, 1 << 16, 1, 0, 0, 0, 0)
        case Operation.LOOKUP:
            return _ENTRY.pack(_FILE, 0, 0, 0, 0, 0) + _attributes(_FILE)
        case Operation.GETATTR:
            return struct.pack("<QII", 0, 0, 0) + _attributes(node)
        case Operation.OPEN:
            return struct.pack("<QII", 1, 0, 0)
        case _:
            return -_ENOSYS


def serve(device: int) -> None:
    """Until the first line; then say nothing any more."""
    either = select.poll()
    either.register(device, select.POLLIN)
    either.register(0, select.POLLIN)
    while True:
        if 0 in dict(either.poll()):
            deaf = sys.stdin.readline().strip() == "deaf"
            print("silent", flush=True)
            break
        request = os.read(device, 1 << 17)
        _, operation, unique, node, *_ = _IN.unpack_from(request)
        if operation in (Operation.FORGET, Operation.BATCH_FORGET):
            continue
        answer = _answer(operation, node)
        error, data = (answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(device, _OUT.pack(_OUT.size + len(data), error, unique) + data)
    while not deaf:
        os.read(device, 1 << 17)
    sys.stdin.read()


def main(folder: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc.mount(b"silent", folder.encode(), b"fuse", 0, options.encode()):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    serve(device)


class SilentFuse:
    """Its server, seen from a test."""

    def __init__(self, folder: Path, server: subprocess.Popen[str]) -> None:
        self.path = folder / "file"
        self._server = server
        self._closing: threading.Thread | None = None
        self.fd = -1

    def open(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR)

    def let_go(self) -> None:
        """Close fd, in a thread that waits for the server. No process may be started while it is
        open: the close in the child would wait as well."""
        self._closing = threading.Thread(target=self._close)
        self._closing.start()

    def _close(self) -> None:
        with suppress(OSError):  # it says that the server is gone
            os.close(self.fd)

    def fall_silent(self, *, deaf: bool = False) -> None:
        """deaf: it does not even take requests."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write("deaf\n" if deaf else "silent\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == "silent\n"

    def end(self) -> None:
        """Whoever waits is told of an error."""
        self._server.kill()
        self._server.wait()
        if self._closing is not None:
            self._closing.join()


@contextmanager
def silent_fuse(folder: Path) -> Iterator[SilentFuse]:
    """Skips the test where there is no FUSE."""
    if not Path("/dev/fuse").exists():
        pytest.skip("A SILENT FILE SYSTEM NOT TESTED: there is no /dev/fuse")
    need_root("A SILENT FILE SYSTEM")
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        found = SilentFuse(folder, server)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "mounted\n"
            yield found
        finally:
            found.end()
            _libc.umount2(str(folder).encode(), _MNT_DETACH)


if __name__ == "__main__":
    main(sys.argv[1])
