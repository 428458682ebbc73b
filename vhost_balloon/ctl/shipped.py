"""Reads the data files of the package."""

from __future__ import annotations

from importlib import resources

from vhost_balloon.ctl.errors import CtlError


def read(folder: str, name: str) -> str:
    """Return the text of a file in a folder of vhost_balloon. Raises CtlError."""
    try:
        return (resources.files("vhost_balloon") / folder / name).read_text("utf-8")
    except OSError as error:
        raise CtlError(f"{name} is not installed: {error.strerror}") from None
