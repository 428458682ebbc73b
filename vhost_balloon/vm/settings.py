"""The VM's settings: one table that command line, files, state records and query-vms follow.

Keys are spelled like the options. A feature is switched by true or false, or by --no-KEY.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, ClassVar, Final

from protocol.qmp import Json
from protocol.virtio_balloon import BalloonFeature
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.service.listeners import SocketOptions
from vhost_balloon.setting_kinds import (
    BOOLEAN,
    GROUP,
    PERMISSIONS,
    RATE,
    SECONDS,
    SIZE,
    Kind,
    choice,
)

DISCARD_MODE: Final = choice(DiscardMode, "DiscardMode")
ALL_FEATURES: Final = sum(int(bit) for bit in BalloonFeature)


class SettingError(ValueError):
    """A value that key cannot have; the text says why."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"'{key}' {text}")
        self.key: Final = key


@dataclass(frozen=True, slots=True)
class VmSettings:
    """The operator's choices for the VM.

    offered: balloon feature bits. stats_interval: seconds, 0 for on demand only. target: bytes
    that the guest keeps when its front end starts, None for all. access: to the VM's socket.
    report_rate: bytes a second of the guest's reports that may be discarded, None for all. memory:
    bytes that the guest has, None to judge by what its front end shares.
    """

    offered: int = ALL_FEATURES
    policy: DiscardPolicy = field(default_factory=DiscardPolicy)
    stats_interval: float = 10.0
    target: int | None = None
    access: SocketOptions = field(default_factory=SocketOptions)
    report_rate: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Setting:
    """One setting.

    path: its attribute in VmSettings. section: of its option in --help, or FILES_ONLY. const: the
    value that an option without an argument sets.
    """

    key: str
    path: str
    kind: Kind
    section: str
    help: str

    const: ClassVar = True

    @property
    def option(self) -> str:
        return f"--{self.key}"

    def get(self, settings: VmSettings) -> Any:
        return attrgetter(self.path)(settings)

    def put(self, settings: VmSettings, value: Any) -> VmSettings:
        outer, _, name = self.path.rpartition(".")
        if outer:
            value = replace(getattr(settings, outer), **{name: value})
        return replace(settings, **{outer or name: value})


@dataclass(frozen=True)
class Feature(Setting):
    """A balloon feature that is offered to the guest unless --no-KEY is given."""

    bit: int

    const: ClassVar = False

    @property
    def option(self) -> str:
        return f"--no-{self.key}"

    def get(self, settings: VmSettings) -> bool:
        return bool(settings.offered & self.bit)

    def put(self, settings: VmSettings, value: Any) -> VmSettings:
        offered = settings.offered & ~self.bit
        return replace(settings, offered=offered | self.bit if value else offered)


VM: Final = "virtual machine"
CONTROL: Final = "control"
FEATURES: Final = "features, all offered by default"
MEMORY: Final = "guest memory"
FILES_ONLY: Final = ""
"""Sections of options in --help."""


def _feature(key: str, bit: BalloonFeature, what: str) -> Feature:
    return Feature(key, "offered", BOOLEAN, FEATURES, f"do not offer {what}", int(bit))


_ALL: Final = (
    _feature("must-tell-host", BalloonFeature.MUST_TELL_HOST,
             "the requirement that the guest asks before it takes pages back"),
    _feature("stats", BalloonFeature.STATS_VQ, "guest memory statistics"),
    _feature("deflate-on-oom", BalloonFeature.DEFLATE_ON_OOM,
             "deflation when the guest is out of memory"),
    _feature("free-page-hint", BalloonFeature.FREE_PAGE_HINT, "free page hints (never acted on)"),
    _feature("page-poison", BalloonFeature.PAGE_POISON, "the guest's page poison value"),
    _feature("reporting", BalloonFeature.PAGE_REPORTING, "free page reporting"),
    Setting("memory", "memory", SIZE, MEMORY,
            "the guest's memory as QEMU counts it, RAM and DIMMs (default: what the front end "
            "shares, held against what the guest says it has)"),
    Setting("discard", "policy.mode", DISCARD_MODE, MEMORY,
            "auto (default): not while the front end has memory pinned for passed-through "
            "devices, or cannot be examined (as another user's process); always: without "
            "examining it; never: acknowledge reports and discard nothing"),
    Setting("discard-hugetlb", "policy.hugetlb", BOOLEAN, MEMORY,
            "discard hugetlb pages too: the guest dies if it touches one again while the host's "
            "pool is empty"),
    Setting("discard-other-filesystems", "policy.other_filesystems", BOOLEAN, MEMORY,
            "discard memory in files that are on neither tmpfs nor hugetlbfs"),
    Setting("stats-interval", "stats_interval", SECONDS, CONTROL,
            "how often to ask the guest for statistics (default 10; 0: on demand only)"),
    Setting("target", "target", SIZE, FILES_ONLY,
            "memory that the guest keeps when its front end starts"),
    Setting("report-rate", "report_rate", RATE, MEMORY,
            "bytes a second of the guest's reports to discard, such as 512M/s, in bursts of two "
            "seconds' worth (default: all); reports above it are acknowledged and kept"),
    Setting("socket-mode", "access.mode", PERMISSIONS, VM,
            "permissions of the front-end socket (octal, default 0600)"),
    Setting("socket-group", "access.group", GROUP, VM, "group of the front-end socket"),
)  # fmt: skip

SETTINGS: Final[Mapping[str, Setting]] = {setting.key: setting for setting in _ALL}
"""All settings, by key."""


def settings_to_json(settings: VmSettings) -> dict[str, Json]:
    """All settings by key, without those that have no value."""
    values = {key: setting.get(settings) for key, setting in SETTINGS.items()}
    return {
        key: SETTINGS[key].kind.write(value) for key, value in values.items() if value is not None
    }


def settings_from_json(values: Mapping[str, object], base: VmSettings) -> VmSettings:
    """base with the given values. Raises SettingError."""
    settings = base
    for key, value in values.items():
        if key not in SETTINGS:
            raise SettingError(key, "is not known")
        setting = SETTINGS[key]
        try:
            settings = setting.put(settings, setting.kind.read(value))
        except ValueError:
            hint = setting.kind.hint(value) if isinstance(value, str) else ""
            raise SettingError(key, f"expects {setting.kind.noun}{hint}") from None
    return settings


def changed_settings(old: VmSettings, new: VmSettings) -> list[str]:
    """Keys of the settings that differ, in the order of SETTINGS."""
    return [key for key, setting in SETTINGS.items() if setting.get(old) != setting.get(new)]
