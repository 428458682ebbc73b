"""Finds which pages of a mapping are in memory: mincore(2), through ctypes."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_mincore = _libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_mincore.restype = ctypes.c_int


def page_residency(mapping: mmap.mmap, offset: int, length: int) -> Sequence[bool]:
    """Return for each host page of a page-aligned part of a shared mapping whether it is in memory.

    For tmpfs and memfd: whether the file has the page. For hugetlb: whether this process has mapped
    it, which punching a hole undoes too.

    Raises:
        OSError: the offset is not page-aligned.
    """
    pages = -(-length // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    # The anchor pins the mapping during the call. It must not outlive the call, or the mapping
    # could not be closed.
    anchor = ctypes.c_char.from_buffer(mapping, offset)
    try:
        failed = _mincore(ctypes.addressof(anchor), length, vector)
    finally:
        del anchor
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return [bool(state & 1) for state in vector]
