"""The file of --config: VMs and their settings, in TOML. A mistake in it is told with its line.

    [defaults]                  # of the VMs below and of those added at run time
    stats-interval = 30

    [vm.web1]                   # one table a VM
    socket-path = "/run/vhost-balloon/web1.sock"
    target = "2G"

Keys are spelled as the options; a feature is switched by true or false.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from vhost_balloon.ctl.text import parse_rate, parse_size
from vhost_balloon.errors import OperatorError
from vhost_balloon.toml_lines import KeyPath, Lines
from vhost_balloon.vm_settings import SettingError, VmSettings, settings_from_json
from vhost_balloon.vm_spec import Origin, VmSpec, read_id, read_socket_path

MAX_SIZE: Final = 256 << 10
"""Bytes: some thousand VMs. What is larger is another kind of file."""

DEFAULTS: Final = "defaults"
VMS: Final = "vm"
SOCKET_PATH: Final = "socket-path"

_TEXTS: Final = {"target": (parse_size, "a size"), "report-rate": (parse_rate, "a rate")}
"""Settings that are numbers of bytes, and may be texts such as "512M" too."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file said when it was read. defaults: the base's settings with the file's."""

    path: Path
    lines: Lines
    defaults: VmSettings
    vms: tuple[VmSpec, ...]

    @classmethod
    def unread(cls, path: Path, defaults: VmSettings) -> ConfigFile:
        """One that has a mistake: it may be read again later."""
        return cls(path, Lines(""), defaults, ())

    @contextmanager
    def blamed(self, vm: VmSpec) -> Iterator[None]:
        """Have an OperatorError about a VM's socket say where the file asks for it."""
        try:
            yield
        except OperatorError as error:
            _fail(self.path, self.lines.of((VMS, vm.id, SOCKET_PATH)), str(error))

    def check_against(self, others: Iterable[VmSpec], control_socket: Path | None) -> None:
        """Raises OperatorError if a name or path is taken by another VM, or by control_socket."""
        names = {vm.id for vm in others}
        paths = {vm.socket_path for vm in others}
        for vm in self.vms:
            if vm.id in names:
                line = self.lines.of((VMS, vm.id))
                _fail(self.path, line, f"two VMs are named {vm.id!r}")
            if vm.socket_path in {*paths, control_socket}:
                line = self.lines.of((VMS, vm.id, SOCKET_PATH))
                _fail(self.path, line, f"{vm.socket_path} is given for two sockets")
            paths.add(vm.socket_path)


def read_config_file(path: Path, base: VmSettings) -> ConfigFile:
    """Read the file; base has the settings that it leaves alone. Raises OperatorError."""
    text = _read_text(path)
    lines = Lines(text)
    reader = _Reader(path, lines)
    document = _parse(path, text, lines)
    for key in document:
        if key not in (DEFAULTS, VMS):
            reader.fail((key,), f"'{key}' is not known: there are [{DEFAULTS}] and [{VMS}.NAME]")
    defaults = reader.settings((DEFAULTS,), reader.table(document, (DEFAULTS,)), base)
    tables = reader.table(document, (VMS,))
    vms = tuple(reader.vm(name, reader.table(tables, (VMS, name)), defaults) for name in tables)
    file = ConfigFile(path, lines, defaults, vms)
    file.check_against((), None)
    return file


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads parts of a document, and knows where they stand."""

    path: Path
    lines: Lines

    def fail(self, keys: KeyPath, text: str) -> NoReturn:
        _fail(self.path, self.lines.of(keys), text)

    def table(self, outer: Mapping[str, Any], keys: KeyPath) -> Mapping[str, Any]:
        """The table that keys ends with; an empty one if it is not there."""
        found = outer.get(keys[-1], {})
        if not isinstance(found, dict):
            self.fail(keys, f"'{keys[-1]}' is no table")
        return found

    def vm(self, name: str, table: Mapping[str, Any], defaults: VmSettings) -> VmSpec:
        keys = (VMS, name)
        try:
            read_id(name)
        except SettingError as error:
            self.fail(keys, f"the name of a VM {error.text}")
        if SOCKET_PATH not in table:
            self.fail(keys, f"VM {name!r} has no '{SOCKET_PATH}'")
        try:
            socket_path = read_socket_path(table[SOCKET_PATH])
        except SettingError as error:
            self.fail((*keys, error.key), str(error))
        values = {key: value for key, value in table.items() if key != SOCKET_PATH}
        return VmSpec(name, self.settings(keys, values, defaults), socket_path, Origin.CONFIG)

    def settings(self, keys: KeyPath, table: Mapping[str, Any], base: VmSettings) -> VmSettings:
        values = dict(table)
        try:
            for key in _TEXTS.keys() & values:
                if isinstance(values[key], str):
                    values[key] = _number(key, values[key])
            return settings_from_json(values, base)
        except SettingError as error:
            self.fail((*keys, error.key), str(error))


def _number(key: str, text: str) -> int:
    parse, what = _TEXTS[key]
    try:
        return parse(text)
    except ValueError as error:
        raise SettingError(key, f"expects {what}: {error}") from None


def _open(path: str, flags: int) -> int:
    """Not blocking: what is given may be a FIFO that nobody writes to."""
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
        return data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        _fail(path, data.count(b"\n", 0, error.start) + 1, "this is no UTF-8")


def _parse(path: Path, text: str, lines: Lines) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # tomllib says the line, but not of the document's end, nor of a number's conversion.
        found = re.fullmatch(r"(.*) \(at line ([0-9]+), column [0-9]+\)", str(error), re.DOTALL)
        line = int(found[2]) if found else lines.broken or text.count("\n") + 1
        reason = found[1] if found else str(error).removesuffix(" (at end of document)")
        if isinstance(error, RecursionError):
            reason = "nested too deeply"
        _fail(path, line, reason[:200])


def _fail(path: Path, line: int, text: str) -> NoReturn:
    raise OperatorError(f"{path}: line {line}: {text}") from None
