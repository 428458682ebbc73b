"""The vhost-balloonctl command: exit statuses, and the one line of an error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Final

INTERRUPTED: Final = 130
"""128 + SIGINT, as a shell has it."""
READER_GONE: Final = 141
"""128 + SIGPIPE: what a program that prints into a closed pipe ends with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Usage mistakes exit with 2 (argparse)."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    # In here, so that Ctrl-C during the imports ends as quietly as later.
    from vhost_balloon.ctl import commands, options
    from vhost_balloon.ctl.errors import CtlError, ReaderGone
    from vhost_balloon.ctl.output import Output
    from vhost_balloon.printable import printable

    try:
        commands.run(options.parse(arguments), Output())
    except CtlError as error:
        with contextlib.suppress(OSError):
            # Without a standard error, print() would take standard output for it.
            if sys.stderr is not None:
                print(f"{options.PROGRAM}: {printable(str(error))}", file=sys.stderr)
        return 1
    except ReaderGone:
        return READER_GONE
    return 0


if __name__ == "__main__":
    sys.exit(main())
