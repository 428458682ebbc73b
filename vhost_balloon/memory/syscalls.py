"""System calls that the standard library lacks, each behind one typed function.

They are called through ctypes.CDLL, which releases the GIL: punching a gibibyte takes a third of a
second. Every function raises OSError with the call's errno, unless its docstring says otherwise.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from array import array
from dataclasses import dataclass
from typing import Final

from vhost_balloon.memory.vector import RangeVector

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
    """struct statfs on x86-64. Only the first two fields are read."""

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
    """A file's file system. page_size: the unit in which its memory is freed, in bytes."""

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
        return self.magic not in (TMPFS_MAGIC, HUGETLBFS_MAGIC)


def _raise(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free length bytes of the file at offset. Partial pages are zeroed instead of freed."""
    _raise(_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length))


MAX_REMOVED: Final = 1024
"""Most ranges in one process_madvise: UIO_MAXIOV, the kernel's limit."""

_VECTOR: Final = array("Q", bytes(16 * MAX_REMOVED))
"""An array of struct iovec, filled anew for each call."""
_VECTOR_ADDRESS: Final = _VECTOR.buffer_info()[0]

_UNSUPPORTED: Final = (errno.ENOSYS, errno.EPERM, errno.EINVAL)
_remove_supported = True


def remove(origin: int, ranges: RangeVector) -> int:
    """Punch holes through this process's own mappings, in order. Returns how many ranges were
    punched. Never raises.

    ranges: in bytes from the address origin, page-aligned, each inside one shared file mapping,
    where MADV_REMOVE does to the file what punch_hole() does (mm/madvise.c). One call for all
    ranges takes half the time of a call for each. The kernel stops at the first range that fails;
    the caller uses punch_hole() for it and the rest, which also tells why it failed.

    A process may do this to itself since Linux 6.13. If the kernel is older, if a system call
    filter forbids it, or if all memory is locked, nothing is punched and no later call tries again.
    """
    global _remove_supported
    done = 0
    while _remove_supported and done < len(ranges):
        asked = ranges.part(done, done + MAX_REMOVED)
        try:
            removed = _remove(origin, asked)
        except OSError as error:
            # After a first success, an error has another reason.
            _remove_supported = done > 0 or error.errno not in _UNSUPPORTED
            return done
        if removed == asked.total():
            done += len(asked)
            continue
        for start, end in asked:
            removed -= end - start
            if removed < 0:
                return done
            done += 1
    return done


def _remove(origin: int, ranges: RangeVector) -> int:
    """One call for at most MAX_REMOVED ranges. Returns how many bytes were removed, in order."""
    ranges.fill(_VECTOR, origin)
    # Not kept open: after a fork it would refer to the parent.
    process = os.pidfd_open(os.getpid())
    try:
        done: int = _syscall(
            NR_PROCESS_MADVISE, process, _VECTOR_ADDRESS, len(ranges), MADV_REMOVE, 0
        )
        if done < 0:
            _raise(done)
        return done
    finally:
        os.close(process)


def allocate(fd: int, offset: int, length: int) -> None:
    """Fill holes in length bytes of the file at offset. Existing contents stay."""
    _raise(_fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length))


def filesystem(fd: int) -> Filesystem:
    """The file's file system, by fstatfs.

    st_blksize does not tell: it is 2 MiB on a plain memfd if shmem huge pages are enabled.
    """
    buffer = _Statfs()
    _raise(_fstatfs(fd, ctypes.byref(buffer)))
    magic = buffer.f_type & 0xFFFFFFFF
    return Filesystem(magic, buffer.f_bsize if magic == HUGETLBFS_MAGIC else PAGE_SIZE)


def shrink_sealed(fd: int) -> bool:
    """Whether the file is sealed against shrinking. False if it cannot be sealed. Never raises."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False
