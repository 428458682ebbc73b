"""Pins or locks memory, or seems to have a device that does.

`python -m tests.support.hostile.pinning pin|lock|pass SIZE`
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

# x86-64, like the daemon: include/uapi/linux/io_uring.h
_IO_URING_SETUP: Final = 425
_IO_URING_REGISTER: Final = 427
_REGISTER_BUFFERS: Final = 0
_PARAMS_SIZE: Final = 120
# include/uapi/linux/sched.h, include/uapi/linux/mount.h
_CLONE_NEWNS: Final = 0x20000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x40000


@contextmanager
def pinned(size: int) -> Iterator[None]:
    """Pin so many bytes of this process, as a device that is passed through does (VmPin).

    Raises:
        OSError: this kernel, or this container, has no io_uring.
    """
    with _memory(size) as address:
        ring = _checked(
            _LIBC.syscall(_IO_URING_SETUP, 1, ctypes.create_string_buffer(_PARAMS_SIZE))
        )
        try:
            vector = (ctypes.c_uint64 * 2)(address, size)
            _checked(_LIBC.syscall(_IO_URING_REGISTER, ring, _REGISTER_BUFFERS, vector, 1))
            yield
        finally:
            os.close(ring)


@contextmanager
def locked(size: int) -> Iterator[None]:
    """Lock so many bytes into RAM (VmLck).

    Raises:
        OSError: RLIMIT_MEMLOCK forbids it.
    """
    with _memory(size) as address:
        _checked(_LIBC.mlock(address, size))
        yield


@contextmanager
def passed_through() -> Iterator[None]:
    """Hold a descriptor that is named like a VFIO group's, /dev/vfio/12. Needs root.

    This process gets a mount namespace of its own, with an empty /dev.

    Raises:
        OSError: this container allows no mounts.
    """
    _checked(_LIBC.unshare(_CLONE_NEWNS))
    _checked(_LIBC.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _checked(_LIBC.mount(b"tmpfs", b"/dev", b"tmpfs", 0, None))
    os.mkdir("/dev/vfio")
    fd = os.open("/dev/vfio/12", os.O_RDWR | os.O_CREAT)
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def _memory(size: int) -> Iterator[int]:
    with mmap.mmap(-1, size) as memory:
        view = ctypes.c_char.from_buffer(memory)
        try:
            yield ctypes.addressof(view)
        finally:
            del view  # or the mapping could not be closed


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def main() -> None:
    """Do it, say so, and keep it until standard input ends."""
    size = int(sys.argv[2])
    acts: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "pin": partial(pinned, size),
        "lock": partial(locked, size),
        "pass": passed_through,
    }
    try:
        with acts[sys.argv[1]]():
            print("done", flush=True)
            sys.stdin.read()
    except OSError as error:
        print(error.strerror, flush=True)


if __name__ == "__main__":
    main()
