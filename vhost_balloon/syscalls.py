"""System calls that the standard library lacks, each behind one typed function.

Called through ctypes.CDLL, which releases the GIL for the call: punching a gibibyte takes a
third of a second. Every function raises OSError with the call's errno.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from dataclasses import dataclass
from typing import Final

# include/uapi/linux/falloc.h
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02

# include/uapi/linux/magic.h
TMPFS_MAGIC: Final = 0x01021994
HUGETLBFS_MAGIC: Final = 0x958458F6

# include/uapi/linux/fcntl.h; fcntl.F_GET_SEALS exists, its bits do too on Linux
F_GET_SEALS: Final = fcntl.F_GET_SEALS
F_SEAL_SHRINK: Final = fcntl.F_SEAL_SHRINK

_libc = ctypes.CDLL(None, use_errno=True)

_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


class _Statfs(ctypes.Structure):
    """struct statfs of x86-64; the fields after the first two are not read."""

    _fields_ = (
        ("f_type", ctypes.c_long),
        ("f_bsize", ctypes.c_long),
        ("rest", ctypes.c_long * 13),
    )


_fstatfs = _libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.POINTER(_Statfs))
_fstatfs.restype = ctypes.c_int

PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Filesystem:
    """What a file lives on; page_size is the unit in which its memory is freed, in bytes."""

    magic: int
    page_size: int

    @property
    def kind(self) -> str:
        """One of "tmpfs" (memfds too), "hugetlb" and "other"."""
        return {TMPFS_MAGIC: "tmpfs", HUGETLBFS_MAGIC: "hugetlb"}.get(self.magic, "other")

    @property
    def is_hugetlb(self) -> bool:
        return self.magic == HUGETLBFS_MAGIC

    @property
    def is_other(self) -> bool:
        return self.kind == "other"


def _raise(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free length bytes of the file at offset; a page that is only partly named is zeroed."""
    _raise(_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length))


def allocate(fd: int, offset: int, length: int) -> None:
    """Allocate length bytes of the file at offset, where they are holes; contents stay."""
    _raise(_fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length))


def filesystem(fd: int) -> Filesystem:
    """What the file lives on, by fstatfs.

    st_blksize would not do: it is 2 MiB on a plain memfd where shmem huge pages are on.
    """
    buffer = _Statfs()
    _raise(_fstatfs(fd, ctypes.byref(buffer)))
    magic = buffer.f_type & 0xFFFFFFFF
    return Filesystem(magic, buffer.f_bsize if magic == HUGETLBFS_MAGIC else PAGE_SIZE)


def shrink_sealed(fd: int) -> bool:
    """Whether the file can never get smaller; files that cannot be sealed count as not."""
    try:
        return bool(fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK)
    except OSError:
        return False
