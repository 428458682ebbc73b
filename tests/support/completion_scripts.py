"""Generates vhost-balloonctl's completion scripts with shtab.

The scripts are checked in, so that shtab is needed only for development. Run this module after a
change to the command line: `python -m tests.support.completion_scripts`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import shtab

import vhost_balloon
from tests.support.parsers import arguments, commands
from vhost_balloon.ctl.options import COMPLETION_SCRIPTS, build_parser

FOLDER: Final = Path(vhost_balloon.__file__).with_name("completion")

_VMS: Final = {shell: "_vhost_balloonctl_vms" for shell in COMPLETION_SCRIPTS}

_BASH_VMS: Final = r"""
# $1: the beginning of a VM's name
_vhost_balloonctl_vms() {
  local -a where=()
  local index name
  for ((index = 1; index < COMP_CWORD; index++)); do
    if [[ ${COMP_WORDS[index]} == @(--folder|--control-socket) ]]; then
      where=("${COMP_WORDS[@]:index:2}")
    fi
  done
  while IFS= read -r name; do
    [[ $name == "$1"* ]] && printf '%q\n' "$name"
  done < <(vhost-balloonctl "${where[@]}" list --names 2>/dev/null)
}
"""

_BASH_ENTRY: Final = r"""
# bash splits --option=value into three words; shtab's function expects two.
_vhost_balloonctl() {
  local -a words=()
  local index current
  for ((index = 0; index < ${#COMP_WORDS[@]}; index++)); do
    if [[ ${COMP_WORDS[index]} != '=' || ${words[-1]} != --* ]]; then
      words+=("${COMP_WORDS[index]}")
    elif ((index == COMP_CWORD)); then
      words+=('')
    fi
    ((index == COMP_CWORD)) && current=$((${#words[@]} - 1))
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$current
  _shtab_vhost_balloonctl
}
complete -F _vhost_balloonctl vhost-balloonctl
"""

_ZSH_VMS: Final = r"""
_vhost_balloonctl_vms() {
  local -a names where
  local word option
  # opt_args lacks the options before the command.
  for word in "${(Q@)${(z)LBUFFER}}"; do
    case $word in
      (--folder=*|--control-socket=*) where=("$word") ;;
      *) [[ $option == (--folder|--control-socket) ]] && where=("$option" "$word") ;;
    esac
    option=$word
  done
  names=("${(@f)$(vhost-balloonctl "${where[@]}" list --names 2>/dev/null)}")
  compadd -- ${names:#}
}
"""


def generate(shell: str) -> str:
    """Return the script for "bash" or "zsh"."""
    parser = build_parser()
    for command in (parser, *commands(parser).values()):
        for action in arguments(command):
            if action.metavar == "PATH":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "VM":
                action.complete = _VMS  # type: ignore[attr-defined]
    if shell == "bash":
        return shtab.complete(parser, shell, preamble=_BASH_VMS) + _BASH_ENTRY
    text = shtab.complete(parser, shell, preamble=_ZSH_VMS)
    # Allow --option=value beside --option value, and VM names as often as nargs="*" says.
    text = re.sub(r'^( *"--[a-z-]+)(\[.*\]:)', r"\1=\2", text, flags=re.MULTILINE)
    return text.replace('"(*)::', '"*:')


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for shell, name in COMPLETION_SCRIPTS.items():
        (FOLDER / name).write_text(generate(shell))
