"""System calls that the standard library lacks, each behind one typed function.

Called through ctypes.CDLL, which releases the GIL for the call: punching a gibibyte takes a
third of a second. Every function raises OSError with the call's errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# include/uapi/linux/falloc.h
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02

# include/uapi/asm-generic/mman-common.h
MADV_REMOVE: Final = 9

# include/uapi/asm-generic/unistd.h: the same on every architecture but Alpha
NR_PROCESS_MADVISE: Final = 440

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


_syscall = _libc.syscall
_syscall.argtypes = (
    *(ctypes.c_long, ctypes.c_long, ctypes.c_void_p),
    *(ctypes.c_long, ctypes.c_long, ctypes.c_ulong),
)
_syscall.restype = ctypes.c_long


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


MAX_REMOVED: Final = 512
"""Ranges of one process_madvise; the kernel takes UIO_MAXIOV, 1024."""

_UNSUPPORTED: Final = (errno.ENOSYS, errno.EPERM, errno.EINVAL)
_remove_supported = True


def remove(origin: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Punch holes through this process's own mappings; return how many ranges, from the first on.

    ranges are (start, end) in bytes from the address origin, page-aligned and each inside one
    shared file mapping, where MADV_REMOVE does what punch_hole() does to the file (mm/madvise.c).
    One call for many takes half of what one call for each takes. Those that are not done are for
    punch_hole(), which also tells why: the kernel stops at the first that fails. Never raises.

    A process may do this to itself since Linux 6.13. Before, where a filter of system calls forbids
    it, or where all memory is locked, nothing is done and it is not tried again.
    """
    global _remove_supported
    done = 0
    while _remove_supported and done < len(ranges):
        asked = ranges[done : done + MAX_REMOVED]
        try:
            removed = _remove(origin, asked)
        except OSError as error:
            # Of the first call only: what was done once is supported.
            _remove_supported = done > 0 or error.errno not in _UNSUPPORTED
            return done
        for start, end in asked:
            removed -= end - start
            if removed < 0:
                return done
            done += 1
    return done


def _remove(origin: int, ranges: Sequence[tuple[int, int]]) -> int:
    """How many bytes of the ranges were removed, from the first on. Raises OSError if none."""
    vector = array("Q", [n for start, end in ranges for n in (origin + start, end - start)])
    # Not kept open: it would mean another process after a fork.
    process = os.pidfd_open(os.getpid())
    try:
        address, _ = vector.buffer_info()
        done: int = _syscall(NR_PROCESS_MADVISE, process, address, len(ranges), MADV_REMOVE, 0)
        if done < 0:
            _raise(done)
        return done
    finally:
        os.close(process)


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
