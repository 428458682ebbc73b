"""Lines that are no question to the examiner."""

from __future__ import annotations

from typing import Final

BAD_QUESTIONS: Final = [
    *(b"", b"\n", b"1\n", b"1 2", b"1 2\r\n", b" 1 2\n", b"1  2\n", b"1 2 \n", b"1 2 3\n"),
    *(b"0 2\n", b"-1 2\n", b"01 2\n", b"1 02\n", b"1 -2\n", b"+1 2\n", b"1 2\n1 2\n"),
    *(b"self 2\n", b"../1 2\n", b"1/fd 2\n", b"1\0 2\n", b"\xd9\xa1 2\n", b"1_0 2\n", b"1 0x2\n"),
    *(b"9" * 11 + b" 1\n", b"1 " + b"9" * 21 + b"\n"),
]
