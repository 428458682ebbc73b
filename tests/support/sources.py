"""Reads this repository's Python files."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def imports(source: str) -> Iterator[str]:
    """Yield the dotted names that a module's text imports, each `from a import b` as a.b.

    Imports inside functions and for type checkers are included.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
