"""The daemon's command line: its options, and how their values are read.

The options of the VM's settings come from vm/settings.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from vhost_balloon.config.option_parser import (
    Parser,
    add_control_access,
    add_log_options,
    reader,
)
from vhost_balloon.errors import OperatorError
from vhost_balloon.log.output import print_out
from vhost_balloon.metrics.options import add_metrics_options
from vhost_balloon.vm import settings
from vhost_balloon.vm.names import read_name
from vhost_balloon.vm.settings import FILES_ONLY, SETTINGS, VmSettings

CAPABILITIES: Final = {"type": "balloon"}
"""QEMU docs/interop/vhost-user.json, VhostUserBackendCapabilities."""


class _PrintCapabilities(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print_out(f"{json.dumps(CAPABILITIES)}\n")
        parser.exit()


class _Refuse(argparse.Action):
    """A removed option; const is the advice to give."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        raise OperatorError(f"{self.option_strings[0]} {self.const}")


def build_parser() -> argparse.ArgumentParser:
    """The daemon's command line."""
    parser = Parser(
        prog="vhost-balloon",
        description="A vhost-user back end that gives KVM guests a virtio memory balloon.",
    )
    parser.add_argument(
        "--print-capabilities",
        action=_PrintCapabilities,
        nargs=0,
        help="print the back end's capabilities as JSON and exit",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="check options, files and addresses without serving anything, and exit",
    )
    vm = parser.add_argument_group(settings.VM)
    _add_vm(vm)
    control = parser.add_argument_group(settings.CONTROL)
    _add_control(control)
    add_metrics_options(parser)
    features = parser.add_argument_group(settings.FEATURES)
    memory = parser.add_argument_group(settings.MEMORY)
    memory.add_argument(
        "--allow-unsealed-memory",
        action=_Refuse,
        nargs=0,
        const="is no longer needed: leave it out (each VM has its own process)",
        dest=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    _add_settings({str(group.title): group for group in (vm, control, features, memory)})
    add_log_options(parser)
    return parser


def _add_vm(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--socket-path",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="listen here for the VM's front end",
    )
    group.add_argument(
        "--fd",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="serve this connected front-end socket (its process stays unknown: see --discard)",
    )
    group.add_argument(
        "--name",
        type=reader(read_name),
        metavar="NAME",
        help="the VM's name, taken as it is (default: that of the socket's file, without .sock or "
        ".socket; all other dots stay)",
    )
    group.add_argument(
        "--config",
        type=lambda text: Path(text).absolute(),
        action="append",
        default=[],
        metavar="FILE",
        help="the VM's settings (TOML), read again by vhost-balloonctl reload; may be repeated, "
        "later files win",
    )


def _add_control(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--control-socket", type=Path, metavar="PATH", help="listen here for QMP clients"
    )
    add_control_access(group)


def _add_settings(groups: dict[str, argparse._ArgumentGroup]) -> None:
    """Add the option of each setting that has one; its value, or None, is kept under the key."""
    for key, setting in SETTINGS.items():
        if setting.section == FILES_ONLY:
            continue
        group = groups[setting.section]
        if setting.kind.metavar:
            group.add_argument(
                setting.option,
                dest=key,
                type=reader(setting.kind.read_option),
                metavar=setting.kind.metavar,
                help=setting.help,
            )
        else:
            group.add_argument(
                setting.option,
                dest=key,
                action="store_const",
                const=setting.const,
                help=setting.help,
            )


def read_settings(options: argparse.Namespace) -> VmSettings:
    """The settings of a parsed command line."""
    found = VmSettings()
    for key, setting in SETTINGS.items():
        value = getattr(options, key, None)
        if value is not None:
            found = setting.put(found, value)
    return found
