"""On which line of a TOML text something stands."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.toml_lines import MAX_STATEMENT, MAX_TRIES, KeyPath, Lines

KEYS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
FILLING = st.sampled_from(["", "# a comment", "  ", "# [vm.no-table]", "#key = 1"])
VALUES = st.sampled_from(
    [
        ("1", 1),
        ('"a # b"', 1),
        ("true  # said so", 1),
        ("{ x = 1 }", 1),
        ('[\n  1,\n  2, # ]\n]', 4),
        ('"""\n[vm.no-table]\nkey = 1\n"""', 4),
        ("'''a\n\n'''", 3),
    ]
)  # fmt: skip


def quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(
    st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4),
    st.lists(FILLING, min_size=40, max_size=40),
    st.booleans(),
)
def test_every_table_and_key_is_found_where_it_was_written(
    tables: dict[str, dict[str, tuple[str, int]]], fillings: list[str], indented: bool
) -> None:
    lines: list[str] = []
    written: dict[KeyPath, int] = {}
    for table, keys in tables.items():
        lines.append(fillings.pop())
        written["vm", table] = len(lines) + 1
        lines.append(f"{' ' * indented}[ vm . {quoted(table)} ]")
        for key, (value, _) in keys.items():
            lines.append(fillings.pop())
            written["vm", table, key] = len(lines) + 1
            lines += f"{' ' * indented}{quoted(key)} = {value}".split("\n")
    text = "\n".join(lines)
    tomllib.loads(text)  # it is what it is meant to be
    found = Lines(text)
    assert found.broken is None
    assert {path: found.of(path) for path in written} == written


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("", ("vm",), 1),
        ("\n\n[vm.a]\nx = 1\n", ("vm", "a", "nothing"), 3),
        ("\n\n[vm.a]\nx = 1\n", ("nothing",), 1),
        ("\nvm.a.x = 1\nvm.a.y = 2", ("vm", "a", "y"), 3),
        ("\nvm.a.x = 1\nvm.a.y = 2", ("vm", "a"), 2),
        ("\n[vm]\na.x = 1\nb = { x = 1, y = 2 }", ("vm", "b", "y"), 4),
        ("[[vm]]\nx = 1\n[[vm]]\nx = 2", ("vm", "x"), 2),
        ("a = 1\n\t[vm.a]\n x = 1", ("vm", "a", "x"), 3),
    ],
)
def test_other_ways_to_write_it(text: str, path: KeyPath, line: int) -> None:
    assert Lines(text).of(path) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\n[vm\nb = 1", 2),
        ("a = 1\n\nb = [1,\n2", 3),
        ("a = 1\nb = " + "9" * 5000, 2),
        ("a = 1\nb = [" + "\n" * MAX_STATEMENT + "]\nc = 1", 2),
        ("a = " + "[" * 50_000, 1),
        ("\n" + "a = [\n1,\n2]\n" * MAX_TRIES, 2 + 3 * MAX_TRIES // 2),
    ],
)
def test_where_it_is_broken(text: str, line: int) -> None:
    lines = Lines(text)
    assert lines.broken == line
    assert lines.of(("c",)) == 1, "nothing behind is known"


@given(st.text(st.sampled_from("[]{}=.,#'\"ab1\n \r"), max_size=40))
def test_any_text_is_looked_through(text: str) -> None:
    """What tomllib takes as a whole, it takes statement by statement."""
    lines = Lines(text)
    assert 1 <= lines.of(("a",)) <= text.count("\n") + 1
    try:
        tomllib.loads(text)
    except ValueError:
        return
    assert lines.broken is None
