"""How a command ends when it does not end well. Every kind is one line at most.

    CtlError           exit status 1 and its text on stderr
    |-- ServerError    ... which is the daemon's own error reply
    `-- Silent         ... the daemon did not answer in time
    ReaderGone         nobody reads standard output any more: the status of SIGPIPE, and silence

A mistake in the command line is argparse's: exit status 2 and one line.
"""

from __future__ import annotations


class CtlError(Exception):
    """A command failed."""


class ServerError(CtlError):
    """The daemon refused; error_class is QMP's."""

    def __init__(self, text: str, error_class: str) -> None:
        super().__init__(text)
        self.error_class = error_class


class Silent(CtlError):
    """No answer within the time limit."""


class ReaderGone(Exception):
    """Standard output is a pipe whose reader has ended."""
