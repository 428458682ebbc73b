"""Reads a file of settings in TOML, and reports mistakes in it with their line.

What its keys mean is for the caller to say (file.py, hub/config.py).
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NoReturn

from vhost_balloon.config.toml_lines import Lines
from vhost_balloon.errors import OperatorError
from vhost_balloon.setting_kinds import Kind

MAX_SIZE: Final = 64 << 10
"""Bytes: enough for many settings and comments. Anything larger is not our file."""
MAX_KEY: Final = 64
"""Characters of a key that are compared with others."""
_ALIKE: Final = 0.75
"""How much a key must have in common with another one to be taken for a slip (difflib)."""

KindOf = Callable[[tuple[str, ...]], Kind | None]
"""The kind of value that a key has; None if there is no such key. A key is given as its path from
the top level: ("policy", "mode")."""


class TomlFile:
    """A file that was read. document: what it says, as tomllib returns it."""

    def __init__(self, path: Path, kind_of: KindOf) -> None:
        """Raises OperatorError."""
        self._path: Final = path
        self._text: Final = _read_text(path)
        self.document: Final = _parse(path, self._text, kind_of)

    def fail(self, key: tuple[str, ...], text: str) -> NoReturn:
        """Raise the OperatorError of a mistake at key."""
        _fail(self._path, Lines(self._text).of(key), text)


def meant_key(key: str, known: Iterable[str]) -> str:
    """The hint for a key that is not known, to follow that; "" if there is none."""
    alike = difflib.get_close_matches(plain_key(key)[:MAX_KEY], known, 1, _ALIKE)
    return f": did you mean '{alike[0]}'?" if alike else ""


def plain_key(key: str) -> str:
    """The spelling that a key would have among ours."""
    return key.lower().replace("_", "-").lstrip("-")


def _open(path: str, flags: int) -> int:
    """Without blocking: the path may lead to a FIFO without a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_text(path: Path) -> str:
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OperatorError(f"{path} is not a regular file")
            data = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OperatorError(f"cannot read {path}: {reason}") from None
    if len(data) > MAX_SIZE:
        raise OperatorError(f"{path} is larger than {MAX_SIZE >> 10} KiB")
    try:
        # Editors on other systems write the mark at the start and the line ends.
        return data.removeprefix(codecs.BOM_UTF8).decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        _fail(path, data.count(b"\n", 0, error.start) + 1, "not UTF-8")


_UNQUOTED: Final = re.compile(r"\s*([A-Za-z-]+)\s*=\s*([^\s\"'\[{#]+)\s*(#.*)?")


def _unquoted(line: str, table: tuple[str, ...], kind_of: KindOf) -> str | None:
    """What is wrong with `discard = always`; None for a line that is not of this kind."""
    found = _UNQUOTED.fullmatch(line)
    kind = None if found is None else kind_of((*table, found[1]))
    if found is None or kind is None:
        return None
    key, word = found[1], found[2]
    try:
        kind.read(word)
    except ValueError:
        return f"'{key}' expects {kind.noun}{kind.hint(word)}"
    return f"'{key}' needs quotes around its value: write {key} = \"{word}\""


def _parse(path: Path, text: str, kind_of: KindOf) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        lines = Lines(text)
        # tomllib names the line, except at the document's end and for numbers it cannot convert.
        found = re.fullmatch(r"(.*) \(at line ([0-9]+), column [0-9]+\)", str(error), re.DOTALL)
        line = int(found[2]) if found else lines.broken or text.count("\n") + 1
        reason = found[1] if found else str(error).removesuffix(" (at end of document)")
        is_here = found is not None and lines.broken == line
        source = text.split("\n")[line - 1]
        if isinstance(error, RecursionError):
            reason = "nested too deeply"
        elif is_here and (unquoted := _unquoted(source, lines.broken_table, kind_of)) is not None:
            reason = unquoted
        elif "\r" in text:
            reason += " (a carriage return ends no line without a line feed)"
        clash = None if lines.broken else lines.around(line)
        if clash is not None:  # it contradicts an earlier statement
            line = clash.first_line
            if (first := lines.before(clash)) is not None:
                both = min(len(first.key), len(clash.key))
                key = ".".join(clash.key[:both])
                reason = f"'{key}' is given twice, first in line {first.first_line}: {reason}"
        _fail(path, line, reason[:200])


def _fail(path: Path, line: int, text: str) -> NoReturn:
    raise OperatorError(f"{path}: line {line}: {text}") from None
