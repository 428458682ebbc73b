"""The commands of the control socket: a table of their arguments, results and handlers.

Commands that QEMU has too follow its qapi/*.json. There is one balloon; `id`
may name its VM and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from protocol.qmp import Json
from vhost_balloon.control.human import PARAMETERS as HUMAN_MONITOR_PARAMETERS
from vhost_balloon.control.human import human_monitor
from vhost_balloon.control.objects import guest_stats
from vhost_balloon.control.qom import QOM_COMMANDS, not_found
from vhost_balloon.control.report import describe_vm
from vhost_balloon.errors import CommandError
from vhost_balloon.qmp_server.command import Command, Parameter
from vhost_balloon.vm.vm import Vm, not_activated

STATS_TIMEOUT: Final = 3000
MAX_STATS_TIMEOUT: Final = 60_000
"""Milliseconds, QMP's unit of timeouts: the default and the limit of balloon-stats."""
MAX_HOLD: Final = 365 * 86400
"""Seconds."""


def _check_id(vm: Vm, arguments: dict[str, Any]) -> None:
    """Raises CommandError if `id` is given and names another VM."""
    if arguments.get("id", vm.id) != vm.id:
        raise not_found(arguments["id"])


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
    hold = _seconds(arguments, "hold")
    if not arguments.get("policy", False):
        await vm.device().order(arguments["value"], hold)
    elif hold is None:
        vm.device().policy_order(arguments["value"])
    else:
        raise CommandError("Parameter 'hold' is not for orders of the policy")
    statistics = vm.statistics(details=False)
    return {"pending": True} if statistics.pending or not statistics.driver_ready else {}


def _seconds(arguments: dict[str, Any], name: str) -> int | None:
    """The time of a hold; None if it is absent. Raises CommandError."""
    seconds: int | None = arguments.get(name)
    if seconds is not None and not 1 <= seconds <= MAX_HOLD:
        raise CommandError(f"Parameter '{name}' expects 1 to {MAX_HOLD} seconds")
    return seconds


def _policy_hold(vm: Vm, arguments: dict[str, Any]) -> Json:
    """Keep the host's policy from changing the target, for ever or for `seconds`."""
    _check_attached(vm, arguments)
    vm.device().hold(_seconds(arguments, "seconds"))
    return {}


def _policy_release(vm: Vm, arguments: dict[str, Any]) -> Json:
    """End a hold, whichever order made it."""
    _check_attached(vm, arguments)
    vm.device().release()
    return {}


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
    return guest_stats(vm)


def _balloon_request_stats(vm: Vm, arguments: dict[str, Any]) -> Json:
    """Ask the guest for a sample. It takes one used buffer, and a guest has no more than one."""
    _check_attached(vm, arguments)
    vm.request_stats()
    return {}


def _balloon_pause(vm: Vm, arguments: dict[str, Any]) -> Json:
    """Acknowledge reported pages without discarding them, until balloon-resume."""
    _check_id(vm, arguments)
    vm.paused = True
    return {}


def _balloon_resume(vm: Vm, arguments: dict[str, Any]) -> Json:
    _check_id(vm, arguments)
    vm.paused = False
    return {}


async def _vm_disconnect(vm: Vm, arguments: dict[str, Any]) -> Json:
    """End the front end's connection. QEMU's next reset of the guest would abort it."""
    _check_id(vm, arguments)
    await vm.disconnect()
    return {}


def _query_memory(vm: Vm, arguments: dict[str, Any]) -> Json:
    """All memory of the guest is its base: what of it was plugged is known to QEMU alone."""
    _check_attached(vm, {})
    size = vm.statistics(details=False).guest_memory
    if not size:
        raise not_activated(f": the memory of VM '{vm.id}' is not known before its driver starts")
    return {"base-memory": size}


def _query_name(vm: Vm, arguments: dict[str, Any]) -> Json:
    return {"name": vm.id}


_ID: Final = Parameter("id", "str", optional=True)

COMMANDS: Final[Mapping[str, Command[Vm]]] = {
    "balloon": Command(
        _balloon,
        (
            Parameter("value", "int"),
            Parameter("policy", "bool", optional=True),
            Parameter("hold", "int", optional=True),
            _ID,
        ),
        "Accepted",
    ),
    "policy-hold": Command(_policy_hold, (Parameter("seconds", "int", optional=True), _ID)),
    "policy-release": Command(_policy_release, (_ID,)),
    "query-balloon": Command(_query_balloon, (_ID,), "BalloonInfo"),
    "balloon-stats": Command(
        _balloon_stats, (Parameter("timeout", "int", optional=True), _ID), "GuestStats"
    ),
    "balloon-request-stats": Command(_balloon_request_stats, (_ID,)),
    "balloon-pause": Command(_balloon_pause, (_ID,)),
    "balloon-resume": Command(_balloon_resume, (_ID,)),
    "vm-disconnect": Command(_vm_disconnect, (_ID,), then=lambda vm: vm.order_answered.set()),
    "query-vms": Command(_query_vms, returns="[VmInfo]"),
    "query-memory-size-summary": Command(_query_memory, returns="MemoryInfo"),
    "query-name": Command(_query_name, returns="NameInfo"),
    "human-monitor-command": Command(
        human_monitor(_balloon, _query_balloon), HUMAN_MONITOR_PARAMETERS, "str"
    ),
    **QOM_COMMANDS,
}
"""All commands except those of every server (qmp_server/) and of the process (daemon/)."""
