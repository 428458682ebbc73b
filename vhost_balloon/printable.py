"""Text from outside, as people may see it. Pure."""

from __future__ import annotations


def printable(text: str) -> str:
    """Show as an escape whatever does not print: control characters, characters that change the
    direction of the text, halves of surrogate pairs (bytes of a file's name that are no UTF-8)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
