"""human-monitor-command: the balloon's lines of QEMU's human monitor, which scripts send over QMP.

They are `info balloon`, `balloon N` (in MiB, as there) and `help`; all others are unknown. Answers
are texts, also to a mistake. Their wording was measured with QEMU 11.1. QEMU takes an arithmetic
expression for N; here it is one number.
"""

from __future__ import annotations

import re
from typing import Any, Final

from protocol.qmp import Json
from vhost_balloon.errors import CommandError
from vhost_balloon.qmp_server.command import Handler, Parameter, finished
from vhost_balloon.vm.vm import Vm

_BALLOON: Final = "balloon target -- request VM to change its memory allocation (in MB)"
_INFO_BALLOON: Final = "info balloon  -- show balloon information"
_HELP: Final = {
    "": (
        _BALLOON,
        "help|? [cmd] -- show the help",
        "info [subcommand] -- show various information about the system state",
    ),
    "balloon": (_BALLOON,),
    "help": ("help|? [cmd] -- show the help",),
    "info": (_INFO_BALLOON,),
    "info balloon": (_INFO_BALLOON,),
}
_NUMBER: Final = re.compile(
    r"(?P<sign>[+-]?)(?P<digits>0[xX][0-9a-fA-F]{1,16}|0[0-7]{0,22}|[1-9][0-9]{0,19})(?P<rest>.*)",
    re.DOTALL,
)
_COMMAND: Final = re.compile(r"info\s+\S+|\S+")
_SHIFT: Final = 20
_UINT63: Final = (1 << 63) - 1

PARAMETERS: Final = (Parameter("command-line", "str"), Parameter("cpu-index", "int", optional=True))


def human_monitor(balloon: Handler[Vm], query_balloon: Handler[Vm]) -> Handler[Vm]:
    """The handler of human-monitor-command, from those of balloon and query-balloon."""

    async def run(vm: Vm, arguments: dict[str, Any]) -> Json:
        words = arguments["command-line"].split(None, 1)
        name, rest = (*words, "", "")[:2]
        try:
            match name:
                case "":
                    return ""
                case "balloon":
                    await finished(balloon(vm, {"value": _mebibytes(rest.strip())}))
                    return ""
                case "info" if rest.split()[:1] == ["balloon"]:
                    return await _info(vm, query_balloon, rest.split()[1:])
                case "info" if not rest:
                    return _help("info")
                case "help" | "?":
                    return _help(" ".join(rest.split()))
        except _Mistake as mistake:
            return _lines(str(mistake))
        except CommandError as error:
            return _lines(f"Error: {error}")
        unknown = _COMMAND.match(arguments["command-line"].lstrip())
        return _lines(f"unknown command: '{unknown[0] if unknown else name}'")

    return run


class _Mistake(Exception):
    """A line that cannot be parsed."""


async def _info(vm: Vm, query_balloon: Handler[Vm], excess: list[str]) -> str:
    if excess:
        raise _excess("balloon", "info balloon")
    found: Any = await finished(query_balloon(vm, {}))
    return _lines(f"balloon: actual={found['actual'] >> _SHIFT}")


def _mebibytes(text: str) -> int:
    """Bytes; more than fit into 63 bits are an impossible size, 0. Raises _Mistake."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        problem = (
            f"invalid char '{text[0]}' in expression" if text else "unexpected end of expression"
        )
        raise _Mistake(_hint(problem, "balloon"))
    if match["rest"]:
        raise _excess("balloon", "balloon")
    digits = match["digits"]
    number = int(digits, 8 if re.fullmatch("0[0-7]+", digits) else 0)
    if match["sign"] == "-" and number:
        raise _Mistake(_hint("enter a positive value", "balloon"))
    size = number << _SHIFT
    return size if size <= _UINT63 else 0


def _excess(name: str, command: str) -> _Mistake:
    return _Mistake(_hint(f"{name}: extraneous characters at the end of line", command))


def _hint(text: str, command: str) -> str:
    return f'{text}\r\nTry "help {command}" for more information'


def _help(command: str) -> str:
    if command in _HELP:
        return _lines(*_HELP[command])
    return _lines(f"unknown command: '{command}'")


def _lines(*lines: str) -> str:
    return "".join(f"{line}\r\n" for line in lines)
