"""A page whose faults block until it is released (userfaultfd)."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from typing import Final

import pytest

from tests.support.huge_pages import need_root

# include/uapi/linux/userfaultfd.h
_NR_USERFAULTFD: Final = 323  # x86-64
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_API: Final = 0xAA
_MODE_MISSING: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.lseek.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_int)


class UnservedPage:
    """Skips the test where the kernel has no userfaultfd(2) for us."""

    def __init__(self) -> None:
        need_root("A WRITE THAT NEVER ENDS")
        self._fd = _libc.syscall(_NR_USERFAULTFD, os.O_CLOEXEC)
        if self._fd < 0:
            pytest.skip(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
        fcntl.ioctl(self._fd, _UFFDIO_API, struct.pack("<QQQ", _API, 0, 0))
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        view = ctypes.c_char.from_buffer(self._page)
        self._address = ctypes.addressof(view)
        del view
        where = struct.pack("<QQQQ", self._address, mmap.PAGESIZE, _MODE_MISSING, 0)
        fcntl.ioctl(self._fd, _UFFDIO_REGISTER, where)

    def write_to(self, fd: int, offset: int) -> int:
        """write(2) from it, which ends after release(); meanwhile it holds the file's lock."""
        _libc.lseek(fd, offset, os.SEEK_SET)
        return int(_libc.write(fd, self._address, mmap.PAGESIZE))

    def release(self) -> None:
        """Faults are served again; more calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
