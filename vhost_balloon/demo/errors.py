"""The demo's error."""

from __future__ import annotations


class DemoError(Exception):
    """The demo cannot continue. The text is for the user."""


def first_of(errors: BaseException) -> BaseException:
    """Return one error of a nursery's group: one is enough for the user."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors
