"""The rig's errors, as a tree.

RigError
|-- RigUnavailable    this machine cannot run the rig (not our fault)
|-- GuestError        QEMU or the guest did not do what was asked
|   |-- CommandError  a command in the guest ended with a non-zero status
|   `-- RigTimeout    a deadline passed
|-- QMPError          a QMP server answered with an error
|-- DaemonError       the daemon did not start or end as it should
`-- SystemdError      systemd in its own namespaces did not do what was asked
"""

from __future__ import annotations

from collections.abc import Mapping


class RigError(Exception):
    """Base of everything the rig raises on purpose."""


class RigUnavailable(RigError):
    """This machine cannot run the rig.

    Attributes:
        reason: one line for a person, fit for a skip message.
        by_tree: reasons by tree name; empty if the reason applies to all trees.
    """

    def __init__(self, reason: str, by_tree: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.by_tree = dict(by_tree or {})


class GuestError(RigError):
    """QEMU or the guest did not do what was asked; the text carries the logs."""


class CommandError(GuestError):
    """A command in the guest ended with a non-zero status."""

    def __init__(self, command: str, status: int, output: str) -> None:
        super().__init__(f"guest command {command!r} ended with status {status}:\n{output}")
        self.command = command
        self.status = status
        self.output = output


class RigTimeout(GuestError):
    """A deadline passed."""


class QMPError(RigError):
    """A QMP server answered with an error.

    Attributes:
        error_class: the QMP error class, such as "GenericError".
    """

    def __init__(self, error_class: str, description: str) -> None:
        super().__init__(f"{error_class}: {description}")
        self.error_class = error_class
        self.description = description


class DaemonError(RigError):
    """The daemon did not start or end as it should; the text carries its log."""


class SystemdError(RigError):
    """systemd in its own namespaces did not do what was asked; the text carries its output."""
