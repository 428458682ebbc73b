r"""Writes names as text: a name is that of a file and may be any bytes, text is Unicode.

A byte that is not UTF-8 is written \udcNN (Python's surrogateescape). Where text is shown, other
characters become \xNN, \uNNNN and the like as well. A backslash that would seem to begin such an
escape is written \x5c, so no two names are written alike. All other characters stay: web\x2d1 is
written as it is, because "-" is never escaped.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Final

from vhost_balloon.printable import printable

_ESCAPE: Final = re.compile(r"\\(?:([nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_LETTERS: Final = {"n": "\n", "r": "\r", "t": "\t"}
_BACKSLASH: Final = "\\x5c"


def name_text(name: str) -> str:
    """The text for a name as system calls return and take it, the same in every locale.

    Raises ValueError for a string that no system call takes.
    """
    characters = os.fsencode(name).decode(errors="surrogateescape")
    spared = _ESCAPE.sub(
        lambda found: found[0] if _character(found) is None else _BACKSLASH + found[0][1:],
        characters,
    )
    return spared.encode(errors="backslashreplace").decode()


def system_name(text: str) -> str:
    """The name, as system calls take it, for its text in any of its forms. Raises ValueError."""
    characters = _ESCAPE.sub(lambda found: _character(found) or found[0], text)
    return os.fsdecode(characters.encode(errors="surrogateescape"))


def spellings(word: str) -> list[str]:
    """The texts of the names that an operator's word may mean, in order of preference: the text of
    a name in any of its forms, or the name itself, letter by letter.

    word: as system calls return it. Raises ValueError for a string that no system call takes.
    """
    found = []
    with suppress(ValueError):
        found.append(name_text(system_name(word)))
    return [*found, name_text(word)]


def shown(text: str) -> str:
    """The text for people: printable, with blanks at its ends escaped. system_name() reads it."""
    left = text.lstrip(" ")
    body = left.rstrip(" ")
    before, after = len(text) - len(left), len(left) - len(body)
    return "\\x20" * before + printable(body) + "\\x20" * after


def _character(found: re.Match[str]) -> str | None:
    """The character that an escape stands for; None if no such character is ever escaped."""
    if found[1]:
        return _LETTERS[found[1]]
    number = int(found[2] or found[3] or found[4], 16)
    is_plain = 0x20 < number < 0x7F and number != ord("\\")
    is_no_byte = 0xD800 <= number < 0xDC80 or 0xDCFF < number < 0xE000
    return None if is_plain or is_no_byte or number > 0x10FFFF else chr(number)
