"""What the examiner (vhost_balloon/examiner/) is asked and answers: one line of ASCII each.

A question is "PID BYTES": a process, and the size of its guest's memory. An answer is "free",
"pinned" or "unknown REASON". No descriptor is passed: closing a foreign one (of a file system in
user space, of a lingering socket) can block whoever received it, and with it all other VMs.
"""

from __future__ import annotations

import re
from typing import Final

PATH: Final = "/run/vhost-balloon-examiner/access/socket"
"""Where the examiner listens. Only root and the units of VMs' daemons can reach that folder."""

FREE: Final = "free"
PINNED: Final = "pinned"
UNKNOWN: Final = "unknown"

MAX_QUESTION: Final = 32
MAX_ANSWER: Final = 256
"""Bytes, with the line's end."""

_QUESTION: Final = re.compile(rb"([1-9][0-9]{0,9}) (0|[1-9][0-9]{0,19})\n")
_ANSWER: Final = re.compile(rb"(?:(free|pinned)|unknown ([!-~][ -~]*))\n")


def question(pid: int, memory_size: int) -> bytes:
    return b"%d %d\n" % (pid, memory_size)


def read_question(line: bytes) -> tuple[int, int]:
    """PID and bytes of guest memory. Raises ValueError."""
    match = _QUESTION.fullmatch(line)
    if match is None:
        raise ValueError("the question is not PID BYTES")
    return int(match[1]), int(match[2])


def answer(word: str, reason: str = "") -> bytes:
    """reason: why the state is UNKNOWN; it is cut to what an answer holds."""
    line = f"{word} {reason}".rstrip()[: MAX_ANSWER - 1]
    return line.encode("ascii", "backslashreplace")[: MAX_ANSWER - 1] + b"\n"


def read_answer(line: bytes) -> tuple[str, str]:
    """The word, and the reason with UNKNOWN. Raises ValueError."""
    match = _ANSWER.fullmatch(line)
    if match is None:
        raise ValueError("the answer is none of the three words")
    if match[1]:
        return match[1].decode(), ""
    return UNKNOWN, match[2].decode()
