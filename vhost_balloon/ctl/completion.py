"""Completion scripts for bash and zsh, made from the command line's parser.

Commands, options and fixed operands stand in the script; `list --names` has the names of VMs each
time. No library for this is worth a dependency: they know the parser too,
but not that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Final

from vhost_balloon.ctl.options import PROGRAM, arguments, build_parser, commands

_BASH: Final = r"""# bash completion for PROGRAM: source it, or put it where bash-completion looks
_vhost_balloonctl() {
    local current=${COMP_WORDS[COMP_CWORD]} command='' operands=0 pending='' word names index
    local -a where=()
    COMPREPLY=()
    # bash hands over --option=value as three words.
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if [[ -n $pending ]]; then
            [[ $word == '=' ]] && continue
            [[ $pending == @(@WHERE@) ]] && where=("$pending" "$word")
            pending=''
        elif [[ $word == @VALUED@ ]]; then
            pending=$word
        elif [[ $word != -* ]]; then
            if [[ -z $command ]]; then command=$word; else ((operands += 1)); fi
        fi
    done
    if [[ -n $pending ]]; then
        [[ $current == '=' ]] && current=''
        [[ $pending == @PATHS@ ]] && mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
    fi
    if [[ $current == -* ]]; then
        case $command in
@OPTIONS@
        esac
        return
    fi
    case $command:$operands in
@OPERANDS@
    @VMS@)
        mapfile -t names < <(PROGRAM "${where[@]}" list --names 2>/dev/null)
        for word in "${names[@]}"; do
            [[ $word == "$current"* ]] && COMPREPLY+=("$(printf %q "$word")")
        done ;;
    esac
}
complete -F _vhost_balloonctl PROGRAM
"""

_ZSH: Final = r"""#compdef PROGRAM
# zsh completion for PROGRAM: a file named _PROGRAM in a folder of $fpath
_vhost_balloonctl_where() {
    local flag
    for flag in @FLAGS@; do
        [[ -n $opt_args[$flag] ]] && where=($flag "${(Q)opt_args[$flag]}")
    done
}

_vhost_balloonctl_vms() {
    local -a names
    _vhost_balloonctl_where
    names=("${(@f)$(PROGRAM "${where[@]}" list --names 2>/dev/null)}")
    compadd -- ${names:#}
}

_vhost_balloonctl() {
    local curcontext=$curcontext state line
    local -a names where
    typeset -A opt_args
    _arguments -C -A "-*" \
@MAIN@
        '1:command:->command' '*::argument:->argument'
    _vhost_balloonctl_where
    case $state in
    command)
        names=(
@COMMANDS@
        )
        _describe command names ;;
    argument)
        case $words[1] in
@ARGUMENTS@
        esac ;;
    esac
}

if [[ $funcstack[1] == _PROGRAM ]]; then
    _vhost_balloonctl "$@"
else
    compdef _vhost_balloonctl PROGRAM
fi
"""


_VMS: Final = ("vm", "vms")
"""The operands that are names of VMs."""

_WHERE: Final = ("--control-socket", "--folder")
"""The options that `list --names` is to have, too."""


def script(shell: str) -> str:
    """The script for "bash" or "zsh"."""
    parser = build_parser()
    text = _bash(parser) if shell == "bash" else _zsh(parser)
    return (
        text.replace("@WHERE@", "|".join(_WHERE))
        .replace("@FLAGS@", " ".join(_WHERE))
        .replace("PROGRAM", PROGRAM)
    )


def _bash(parser: argparse.ArgumentParser) -> str:
    known = commands(parser)
    every = {"": parser} | {name: found for name, (found, _) in known.items()}
    valued = {flag for found in every.values() for flag in _options(found, valued=True)}
    paths = {
        flag
        for found in every.values()
        for action in arguments(found)
        if action.metavar == "PATH"
        for flag in action.option_strings
    }
    options = [f"        '{name}') {_compgen(_options(found))} ;;" for name, found in every.items()]
    operands = [f"    :*) {_compgen(known)} ;;"]
    vms = []
    for name, found in every.items():
        for number, operand in enumerate(_operands(found)):
            if operand.choices is not None:
                operands.append(f"    {name}:{number}) {_compgen(operand.choices)} ;;")
            elif operand.dest in _VMS:
                vms.append(f"{name}:{'*' if operand.nargs == '*' else number}")
    return (
        _BASH.replace("@VALUED@", f"@({'|'.join(sorted(valued))})")
        .replace("@PATHS@", f"@({'|'.join(sorted(paths))})")
        .replace("@OPTIONS@", "\n".join(options))
        .replace("@OPERANDS@", "\n".join(operands))
        .replace("@VMS@", "|".join(vms))
    )


def _compgen(words: Iterable[str]) -> str:
    return f"""mapfile -t COMPREPLY < <(compgen -W '{" ".join(words)}' -- "$current")"""


def _zsh(parser: argparse.ArgumentParser) -> str:
    known = commands(parser)
    names = [f"            {_quote(f'{name}:{text}')}" for name, (_, text) in known.items()]
    cases = [
        f"        {name}) _arguments {' '.join(_specs(found))} ;;"
        for name, (found, _) in known.items()
    ]
    main = [f"        {spec} \\" for spec in _specs(parser)]
    return (
        _ZSH.replace("@MAIN@", "\n".join(main))
        .replace("@COMMANDS@", "\n".join(names))
        .replace("@ARGUMENTS@", "\n".join(cases))
    )


def _specs(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What zsh's _arguments takes, quoted."""
    for action in arguments(parser):
        if not action.option_strings:
            continue
        text = (action.help or "").replace("[", "(").replace("]", ")")
        for flag in action.option_strings:
            if action.nargs == 0:
                yield _quote(f"{flag}[{text}]")
            else:
                files = ":_files" if action.metavar == "PATH" else ": "
                yield _quote(f"{flag}=[{text}]:{action.metavar}{files}")
    for number, operand in enumerate(_operands(parser), 1):
        if operand.choices is not None:
            yield _quote(f"{number}:{operand.dest}:({' '.join(operand.choices)})")
        else:
            where = "*" if operand.nargs == "*" else number
            found = "_vhost_balloonctl_vms" if operand.dest in _VMS else " "
            yield _quote(f"{where}:{operand.metavar}:{found}")


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _options(parser: argparse.ArgumentParser, *, valued: bool = False) -> list[str]:
    """All options, or those that take a value."""
    return [
        flag
        for action in arguments(parser)
        if not (valued and action.nargs == 0)
        for flag in action.option_strings
    ]


def _operands(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in arguments(parser) if not action.option_strings]
