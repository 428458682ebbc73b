"""Looks into argparse's parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator


def arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield all options and operands of a parser, except the choice of a command.

    argparse has no public way to list them.
    """
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            yield action


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return each command's own parser, in the order of --help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}
