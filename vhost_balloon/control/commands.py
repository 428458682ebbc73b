"""The commands of the control socket: a table of their arguments, results and handlers.

Commands that QEMU has too follow its qapi/{balloon,machine,qom}.json. There is one balloon; `id`
may name its VM and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from protocol.qmp import ErrorClass, Json, Object, version
from protocol.virtio_balloon import STAT_NAMES, STAT_UNKNOWN
from vhost_balloon import __version__
from vhost_balloon.control.command import Command, Parameter, check_type
from vhost_balloon.control.report import describe_vm
from vhost_balloon.errors import CommandError
from vhost_balloon.vm.vm import Vm, not_activated

UINT32_MAX: Final = (1 << 32) - 1

STATS_TIMEOUT: Final = 3000
MAX_STATS_TIMEOUT: Final = 60_000
"""Milliseconds, QMP's unit of timeouts: the default and the limit of balloon-stats."""

QOM_TYPE: Final = "vhost-balloon"
"""The type's name in errors about properties."""

QOM_PREFIX: Final = "/machine/peripheral/"
STATS: Final = "guest-stats"
POLLING_INTERVAL: Final = "guest-stats-polling-interval"


def version_info() -> Object:
    major, minor, micro = (int(part) for part in __version__.split("."))
    return version(major, minor, micro, "vhost-balloon")


def _not_found(device: str) -> CommandError:
    return CommandError(f"Device '{device}' not found", ErrorClass.DEVICE_NOT_FOUND.value)


def _check_id(vm: Vm, arguments: dict[str, Any]) -> None:
    """Raises CommandError if `id` is given and names another VM."""
    if arguments.get("id", vm.id) != vm.id:
        raise _not_found(arguments["id"])


def _check_attached(vm: Vm, arguments: dict[str, Any]) -> None:
    """Raises CommandError if `id` names another VM, or there is no front end."""
    _check_id(vm, arguments)
    if not vm.attached:
        raise not_activated(f": VM '{vm.id}' has no front end")


async def _balloon(vm: Vm, arguments: dict[str, Any]) -> Json:
    """Set the target in bytes. The reply says "pending" while there is no driver to follow it."""
    _check_attached(vm, arguments)
    if arguments["value"] <= 0:
        raise CommandError("Parameter 'value' expects a size")
    await vm.order(arguments["value"])
    statistics = vm.statistics(details=False)
    return {"pending": True} if statistics.pending or not statistics.driver_ready else {}


def _query_balloon(vm: Vm, arguments: dict[str, Any]) -> Json:
    _check_attached(vm, arguments)
    actual = vm.statistics(details=False).actual
    if actual is None:
        raise not_activated(f": the memory of VM '{vm.id}' is not known before its driver starts")
    return {"actual": actual}


def _query_vms(vm: Vm, arguments: dict[str, Any]) -> Json:
    return [describe_vm(vm.statistics())]


async def _balloon_stats(vm: Vm, arguments: dict[str, Any]) -> Json:
    """A fresh sample in the form of guest-stats, which the guest delivers within `timeout` ms."""
    _check_attached(vm, arguments)
    milliseconds = arguments.get("timeout", STATS_TIMEOUT)
    if not 0 < milliseconds <= MAX_STATS_TIMEOUT:
        raise CommandError(f"Parameter 'timeout' expects 1 to {MAX_STATS_TIMEOUT} milliseconds")
    await vm.fresh_stats(milliseconds / 1000)
    return _guest_stats(vm)


def _balloon_pause(vm: Vm, arguments: dict[str, Any]) -> Json:
    """Acknowledge reported pages without discarding them, until balloon-resume."""
    _check_id(vm, arguments)
    vm.paused = True
    return {}


def _balloon_resume(vm: Vm, arguments: dict[str, Any]) -> Json:
    _check_id(vm, arguments)
    vm.paused = False
    return {}


def _query_version(vm: Vm, arguments: dict[str, Any]) -> Json:
    return version_info()


def _check_path(vm: Vm, path: str) -> None:
    if path.rstrip("/") != f"{QOM_PREFIX}{vm.id}":
        raise _not_found(path)


def _guest_stats(vm: Vm) -> Json:
    statistics = vm.statistics(details=False)
    stats = {name: statistics.stats.get(tag, STAT_UNKNOWN) for tag, name in STAT_NAMES.items()}
    return {"stats": stats, "last-update": statistics.stats_last_update}


def _polling_interval(vm: Vm) -> Json:
    """An integer as in QEMU, unless the operator's option set a fraction of a second."""
    interval = vm.stats_interval
    return int(interval) if interval == int(interval) else interval


_PROPERTIES: Final[Mapping[str, Callable[[Vm], Json]]] = {
    STATS: _guest_stats,
    POLLING_INTERVAL: _polling_interval,
}


def _qom_get(vm: Vm, arguments: dict[str, Any]) -> Json:
    _check_path(vm, arguments["path"])
    read = _PROPERTIES.get(arguments["property"])
    if read is None:
        raise CommandError(f"Property '{QOM_TYPE}.{arguments['property']}' not found")
    return read(vm)


def _qom_set(vm: Vm, arguments: dict[str, Any]) -> Json:
    _check_path(vm, arguments["path"])
    name, value = arguments["property"], arguments["value"]
    if name not in _PROPERTIES:
        raise CommandError(f"Property '{QOM_TYPE}.{name}' not found")
    if name != POLLING_INTERVAL:
        raise CommandError(f"Property '{QOM_TYPE}.{name}' is not writable")
    check_type(name, "int", value)
    if value < 0:
        raise CommandError("timer value must be greater than zero")
    if value > UINT32_MAX:
        raise CommandError("timer value is too big")
    vm.stats_interval = float(value)
    return {}


_ID: Final = Parameter("id", "str", optional=True)
_PROPERTY: Final = (Parameter("path", "str"), Parameter("property", "str"))

COMMANDS: Final[Mapping[str, Command]] = {
    "balloon": Command(_balloon, (Parameter("value", "int"), _ID), "Accepted"),
    "query-balloon": Command(_query_balloon, (_ID,), "BalloonInfo"),
    "balloon-stats": Command(
        _balloon_stats, (Parameter("timeout", "int", optional=True), _ID), "GuestStats"
    ),
    "balloon-pause": Command(_balloon_pause, (_ID,)),
    "balloon-resume": Command(_balloon_resume, (_ID,)),
    "query-vms": Command(_query_vms, returns="[VmInfo]"),
    "query-version": Command(_query_version, returns="VersionInfo"),
    "qom-get": Command(_qom_get, _PROPERTY, "any"),
    "qom-set": Command(_qom_set, (*_PROPERTY, Parameter("value", "any"))),
}
"""All commands except those of a client's session (server.py) and of the process (daemon/)."""
