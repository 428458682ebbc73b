"""The files of --config: the VM's settings, in TOML. Mistakes are reported with their line.

    target = "2G"
    stats-interval = 30
    reporting = false

Keys are those of vm/settings.py, at the top level.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from vhost_balloon.config.toml_lines import Lines
from vhost_balloon.errors import OperatorError
from vhost_balloon.vm.settings import SETTINGS, SettingError, VmSettings, settings_from_json

MAX_SIZE: Final = 64 << 10
"""Bytes: enough for a dozen settings and many comments. Anything larger is not our file."""

_ONE_VM: Final = (
    "is for several VMs, and this daemon serves one: write one file for each VM, with its keys at "
    "the top level"
)
_REFUSED: Final = {
    "vm": _ONE_VM,
    "defaults": _ONE_VM,
    "socket-path": "is not a setting: give --socket-path, or have the socket handed over",
    **{
        name: f"is not known: give --{name} on the command line"
        for name in ("name", "fd", "config", "control-socket", "control-mode", "control-group",
                     "metrics-address", "metrics-certificate", "metrics-key", "metrics-client-ca",
                     "log-level", "log-format")
    },
}  # fmt: skip
"""Keys of earlier versions, options that are no settings, and what to do instead."""

MAX_KEY: Final = 64
"""Characters of a key that are compared with others."""
_ALIKE: Final = 0.75
"""How much a key must have in common with another one to be taken for a slip (difflib)."""


def read_files(files: Sequence[Path], base: VmSettings) -> VmSettings:
    """base with the settings of the files; later files win.

    Raises OperatorError with the file and the line.
    """
    settings = base
    for path in files:
        settings = _read_file(path, settings)
    return settings


def _read_file(path: Path, base: VmSettings) -> VmSettings:
    text = _read_text(path)
    document = _parse(path, text)
    try:
        for key, value in document.items():
            if key not in SETTINGS:
                raise SettingError(key, _unknown(key, value))
        return settings_from_json(document, base)
    except SettingError as error:
        _fail(path, Lines(text).of(error.key), str(error))


def _unknown(key: str, value: object) -> str:
    """Why key is not a setting, and what may have been meant."""
    plain = key.lower().replace("_", "-").lstrip("-")
    if plain in _REFUSED:
        return _REFUSED[plain]
    if plain.startswith("no-") and plain.removeprefix("no-") in SETTINGS:
        return f"is not known: write {plain.removeprefix('no-')} = false"
    alike = difflib.get_close_matches(plain[:MAX_KEY], [*SETTINGS, *_REFUSED], 1, _ALIKE)
    if alike:
        return f"is not known: did you mean '{alike[0]}'?"
    if isinstance(value, dict):
        return "is not known: settings stand at the top level, without tables and dotted keys"
    return "is not known"


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


def _unquoted(line: str) -> str | None:
    """What is wrong with `discard = always`; None for a line that is not of this kind."""
    found = _UNQUOTED.fullmatch(line)
    if found is None or found[1] not in SETTINGS:
        return None
    key, word, kind = found[1], found[2], SETTINGS[found[1]].kind
    try:
        kind.read(word)
    except ValueError:
        return f"'{key}' expects {kind.noun}{kind.hint(word)}"
    return f"'{key}' needs quotes around its value: write {key} = \"{word}\""


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        lines = Lines(text)
        # tomllib names the line, except at the document's end and for numbers it cannot convert.
        found = re.fullmatch(r"(.*) \(at line ([0-9]+), column [0-9]+\)", str(error), re.DOTALL)
        line = int(found[2]) if found else lines.broken or text.count("\n") + 1
        reason = found[1] if found else str(error).removesuffix(" (at end of document)")
        is_here = found is not None and lines.broken == line
        if isinstance(error, RecursionError):
            reason = "nested too deeply"
        elif is_here and (unquoted := _unquoted(text.split("\n")[line - 1])) is not None:
            reason = unquoted
        elif "\r" in text:
            reason += " (a carriage return ends no line without a line feed)"
        clash = None if lines.broken else lines.around(line)
        if clash is not None:  # it contradicts an earlier statement
            line = clash.first_line
        if clash is not None and clash.key:
            reason = f"'{clash.key}' is given twice, first in line {lines.of(clash.key)}: {reason}"
        _fail(path, line, reason[:200])


def _fail(path: Path, line: int, text: str) -> NoReturn:
    raise OperatorError(f"{path}: line {line}: {text}") from None
