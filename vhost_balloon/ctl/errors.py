"""The ways in which a command fails. Each prints at most one line.

    CtlError           exit status 1 and the text on stderr
    |-- ServerError    the daemon replied with an error
    |-- Absent         nothing listens on the socket
    `-- Silent         the daemon did not answer in time
    ReaderGone         the reader of standard output has gone: SIGPIPE's status and no text

argparse handles mistakes in the command line: exit status 2 and one line.
"""

from __future__ import annotations


class CtlError(Exception):
    """A command failed."""


class ServerError(CtlError):
    """The daemon refused. error_class: QMP's class of the error."""

    def __init__(self, text: str, error_class: str) -> None:
        super().__init__(text)
        self.error_class = error_class


class Absent(CtlError):
    """Nothing listens on the socket, or there is none."""


class Silent(CtlError):
    """The daemon did not answer within the time limit."""


class ReaderGone(Exception):
    """Standard output is a pipe without a reader."""
