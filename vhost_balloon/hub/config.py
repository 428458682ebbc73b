"""The files of --config: the policy's settings, in TOML. Mistakes are reported with their line.

    [policy]
    mode = "on"
    reserve = "10%"

    [defaults]
    floor = "512M"

    [vm.web1]
    weight = 200

A VM has what its table says, and else what [defaults] says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from vhost_balloon.config.toml_file import TomlFile, meant_key, plain_key
from vhost_balloon.hub.policy_kinds import CGROUP, GUEST_SIZE, MODE, RESERVE, SWITCH, WEIGHT
from vhost_balloon.name_text import spellings
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.settings import Mode, PolicySettings
from vhost_balloon.setting_kinds import BOOLEAN, Kind
from vhost_balloon.sizes import format_size

POLICY: Final = "policy"
DEFAULTS: Final = "defaults"
VM: Final = "vm"
TABLES: Final = (POLICY, DEFAULTS, VM)

_CEILING: Final = "ceiling"
_CGROUP: Final = "cgroup"
_FLOOR: Final = "floor"

Key = tuple[str, ...]
"""A path from the top level: ("vm", "web1") is a table, ("vm", "web1", "weight") a key in it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """field: its name in PolicySettings or VmSettings."""

    field: str
    kind: Kind


POLICY_SETTINGS: Final[Mapping[str, Setting]] = {
    "mode": Setting("mode", MODE),
    "reserve": Setting("reserve", RESERVE),
    _CGROUP: Setting("cgroup", CGROUP),
    "zfs-arc": Setting("zfs_arc", BOOLEAN),
}
VM_SETTINGS: Final[Mapping[str, Setting]] = {
    "policy": Setting("on", SWITCH),
    "weight": Setting("weight", WEIGHT),
    _FLOOR: Setting("floor", GUEST_SIZE),
    _CEILING: Setting("ceiling", GUEST_SIZE),
}
"""By key."""


def read_settings(files: Sequence[Path], *, is_start: bool = False) -> PolicySettings:
    """The settings of the files; later files win. Call it in a thread if others must not wait,
    because a file system may hang.

    is_start: a cgroup that is missing may come. Raises OperatorError with the file and the line.
    """
    tables: dict[Key, dict[str, Any]] = {}
    read = []
    for path in files:
        file = TomlFile(path, _kind)
        for table, values in _tables(file):
            tables.setdefault(table, {}).update(_read_table(file, table, values))
        _check_same(file, tables)
        _check_limits(file, tables)
        read.append(file)
    settings = _settings(tables)
    if not is_start and settings.mode is not Mode.OFF and settings.cgroup is not None:
        _check_cgroup(settings.cgroup, read)
    return settings


def _known(table: Key) -> Mapping[str, Setting]:
    """The keys that a table may have."""
    return POLICY_SETTINGS if table == (POLICY,) else VM_SETTINGS


def _kind(key: Key) -> Kind | None:
    *table, last = key
    if tuple(table) not in ((POLICY,), (DEFAULTS,)) and (len(key) != 3 or key[0] != VM):
        return None
    setting = _known(tuple(table)).get(last)
    return None if setting is None else setting.kind


def _tables(file: TomlFile) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The tables of settings in a file. Raises OperatorError."""
    for name, value in file.document.items():
        if name not in TABLES:
            file.fail((name,), f"'{name}' is not known{_belongs(name) or meant_key(name, TABLES)}")
        if not isinstance(value, dict):
            head = f"[{VM}.NAME]" if name == VM else f"[{name}]"
            file.fail((name,), f"'{name}' is a table: write {head}, and its settings below")
        if name != VM:
            yield (name,), value
            continue
        for vm, settings in value.items():
            _check_name(file, vm)
            if not isinstance(settings, dict):
                file.fail((VM, vm), f"'{vm}' is not a VM's table: write [{VM}.NAME] for each VM")
            yield (VM, vm), settings


def _check_name(file: TomlFile, name: str) -> None:
    if not name or name.startswith(".") or "/" in name:
        file.fail(
            (VM, name),
            f"{name!r} cannot be a VM's name: it is empty, begins with a dot or contains a slash",
        )


def _read_table(file: TomlFile, table: Key, values: Mapping[str, Any]) -> dict[str, Any]:
    """A table's settings by key. Raises OperatorError."""
    known, found = _known(table), {}
    for key, value in values.items():
        if key not in known:
            file.fail((*table, key), _unknown(table, key, value))
        kind = known[key].kind
        try:
            found[key] = kind.read(value)
        except ValueError:
            hint = kind.hint(value) if isinstance(value, str) else ""
            file.fail((*table, key), f"'{key}' expects {kind.noun}{hint}")
    return found


def _unknown(table: Key, key: str, value: object) -> str:
    """Why key is no setting of a table, and what may have been meant."""
    text = f"'{key}' is not known in {_head(table)}"
    if isinstance(value, dict) and table[0] == VM:
        return f"{text}: a name with dots needs quotes: {_head((VM, f'{table[1]}.{key}'))}"
    return text + (meant_key(key, _known(table)) or _belongs(key))


def _belongs(key: str) -> str:
    """The hint for a key of another table; "" if it is of none."""
    if plain_key(key) in POLICY_SETTINGS:
        return f": it belongs in [{POLICY}]"
    if plain_key(key) in VM_SETTINGS:
        return f": it belongs in [{DEFAULTS}] or [{VM}.NAME]"
    return ""


def _head(table: Key) -> str:
    return f"[{'.'.join(map(_quoted, table))}]"


def _quoted(part: str) -> str:
    """As TOML has it; between double quotes, a backslash would begin an escape of its own."""
    if re.fullmatch(r"[\w-]+", part, re.ASCII):
        return part
    return f"'{part}'" if "\\" in part else f'"{part}"'


def _spellings(name: str) -> list[str]:
    """See name_text.spellings(). The file is UTF-8, and system calls have the locale's encoding."""
    return spellings(os.fsdecode(name.encode()))


def _check_same(file: TomlFile, tables: Iterable[Key]) -> None:
    """Raises OperatorError for two tables of one VM, with a line of this file, the last one."""
    seen: dict[str, Key] = {}
    for table in tables:
        if table[0] != VM:
            continue
        first = seen.setdefault(_spellings(table[1])[0], table)
        if first != table:
            both = f"{_head(first)} and {_head(table)}"
            file.fail(table, f"{both} are the same VM: spell it in one way")


def _check_limits(file: TomlFile, tables: Mapping[Key, Mapping[str, Any]]) -> None:
    """Raises OperatorError for a floor above a ceiling, with a line of this file, the last one."""
    defaults = tables.get((DEFAULTS,), {})
    for table, values in tables.items():
        both = {**defaults, **values}
        floor, ceiling = both.get(_FLOOR), both.get(_CEILING)
        if table == (POLICY,) or floor is None or ceiling is None or floor <= ceiling:
            continue
        keys = [(*where, key) for where in (table, (DEFAULTS,)) for key in (_FLOOR, _CEILING)]
        file.fail(
            next((key for key in keys if _has(file.document, key)), table),
            f"in {_head(table)} the floor of {format_size(floor)} is above the ceiling of "
            f"{format_size(ceiling)}",
        )


def _has(document: object, key: Key) -> bool:
    for part in key:
        if not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True


def _check_cgroup(path: str, files: Sequence[TomlFile]) -> None:
    """Raises OperatorError, with the line that is in force."""
    if not os.path.isdir(path):
        key = (POLICY, _CGROUP)
        giving = [file for file in files if _has(file.document, key)]
        giving[-1].fail(key, f"'{_CGROUP}': there is no folder {path}")


def _settings(tables: Mapping[Key, Mapping[str, Any]]) -> PolicySettings:
    def fields(table: Key) -> dict[str, Any]:
        known = _known(table)
        return {known[key].field: value for key, value in tables.get(table, {}).items()}

    defaults = VmSettings(**fields((DEFAULTS,)))
    vms = {table[1]: replace(defaults, **fields(table)) for table in tables if table[0] == VM}
    return PolicySettings(**fields((POLICY,)), defaults=defaults, vms=vms, names=_names(vms))


def _names(spelled: Collection[str]) -> dict[str, str]:
    """How the VMs are spelled that are spelled unlike their names, by name."""
    found: dict[str, str] = {}
    for place in (0, -1):  # in order of preference
        for word in spelled:
            found.setdefault(_spellings(word)[place], word)
    return {name: word for name, word in found.items() if name not in spelled}
