"""Makes text from outside safe to show. Pure."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape all characters that are not printable: control characters, characters that change the
    direction of text, halves of surrogate pairs (bytes of a file name that are not UTF-8)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def encodable(text: str) -> str:
    """Escape halves of surrogate pairs, which neither UTF-8 nor JSON can carry."""
    return text.encode(errors="backslashreplace").decode()
