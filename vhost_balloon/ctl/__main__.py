"""The vhost-balloonctl command: runs it, prints errors and returns the exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

INTERRUPTED: Final = 130
"""128 + SIGINT, as in a shell."""
READER_GONE: Final = 141
"""128 + SIGPIPE, as of a program killed for writing to a closed pipe."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. argparse exits with 2 on a usage error."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    # Imported here, so that Ctrl-C during the imports is handled too.
    from vhost_balloon.ctl import commands, options
    from vhost_balloon.ctl.errors import CtlError, ReaderGone
    from vhost_balloon.ctl.output import Output, complain

    try:
        commands.run(options.parse(arguments), Output())
    except CtlError as error:
        complain(str(error))
        return 1
    except ReaderGone:
        return READER_GONE
    return 0


if __name__ == "__main__":
    sys.exit(main())
