"""The files of --config: the VM's settings, in TOML. Mistakes are reported with their line.

    target = "2G"
    stats-interval = 30
    reporting = false

Keys are those of vm/settings.py, at the top level.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vhost_balloon.config.toml_file import TomlFile, meant_key, plain_key
from vhost_balloon.setting_kinds import Kind
from vhost_balloon.vm.settings import SETTINGS, SettingError, VmSettings, settings_from_json

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


def read_files(files: Sequence[Path], base: VmSettings) -> VmSettings:
    """base with the settings of the files; later files win.

    Raises OperatorError with the file and the line.
    """
    settings = base
    for path in files:
        settings = _read_file(path, settings)
    return settings


def _kind(key: tuple[str, ...]) -> Kind | None:
    return SETTINGS[key[0]].kind if len(key) == 1 and key[0] in SETTINGS else None


def _read_file(path: Path, base: VmSettings) -> VmSettings:
    file = TomlFile(path, _kind)
    try:
        for key, value in file.document.items():
            if key not in SETTINGS:
                raise SettingError(key, _unknown(key, value))
        return settings_from_json(file.document, base)
    except SettingError as error:
        file.fail((error.key,), str(error))


def _unknown(key: str, value: object) -> str:
    """Why key is not a setting, and what may have been meant."""
    plain = plain_key(key)
    if plain in _REFUSED:
        return _REFUSED[plain]
    if plain.startswith("no-") and plain.removeprefix("no-") in SETTINGS:
        return f"is not known: write {plain.removeprefix('no-')} = false"
    if meant := meant_key(key, [*SETTINGS, *_REFUSED]):
        return f"is not known{meant}"
    if isinstance(value, dict):
        return "is not known: settings stand at the top level, without tables and dotted keys"
    return "is not known"
