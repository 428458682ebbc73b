"""The lines of top-level keys in a TOML text."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.config.toml_lines import MAX_STATEMENT, MAX_TRIES, Lines

KEYS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
FILLING = st.sampled_from(["", "# a comment", "  ", "# [no-table]", "#key = 1"])
VALUES = st.sampled_from(
    [
        ("1", 1),
        ('"a # b"', 1),
        ("true  # said so", 1),
        ("{ x = 1 }", 1),
        ('[\n  1,\n  2, # ]\n]', 4),
        ('"""\n[no-table]\nkey = 1\n"""', 4),
        ("'''a\n\n'''", 3),
    ]
)  # fmt: skip


def quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(
    st.dictionaries(KEYS, VALUES, max_size=8),
    st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=2), max_size=2),
    st.lists(FILLING, min_size=40, max_size=40),
    st.booleans(),
)
def test_every_key_and_table_is_found_on_its_line(
    keys: dict[str, tuple[str, int]],
    tables: dict[str, dict[str, tuple[str, int]]],
    fillings: list[str],
    indented: bool,
) -> None:
    lines: list[str] = []
    written: dict[str, int] = {}

    def write(text: str) -> int:
        lines.append(fillings.pop())
        lines.extend(f"{' ' * indented}{text}".split("\n"))
        return len(lines) - text.count("\n")

    for key, (value, _) in keys.items():
        written[key] = write(f"{quoted(key)} = {value}")
    for table in tables.keys() - keys:
        written[table] = write(f"[ {quoted(table)} ]")
        for key, (value, _) in tables[table].items():
            write(f"{quoted(key)} = {value}")
    text = "\n".join(lines)
    assert set(tomllib.loads(text)) == set(written), "the text is as intended"
    found = Lines(text)
    assert found.broken is None
    assert {key: found.of(key) for key in written} == written


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("", "a", 1),
        ("\n\na = 1\n", "nothing", 1),
        ("\na.x = 1\na.y = 2", "a", 2),
        ("\n\n[a.b]\nx = 1", "a", 3),
        ("\n[[a]]\nx = 1\n[[a]]\nx = 2", "a", 2),
        ("x = 1\n\t[a]\n b = 1\n[b]", "b", 4),
        ("[a]\nx = 1\n[b]", "x", 1),
        ("\na = { x = 1, y = 2 }\n'b' = 1", "b", 3),
        ("a = [\n[1],\n[2]]\nb = 1", "b", 4),
    ],
)
def test_other_spellings(text: str, key: str, line: int) -> None:
    assert Lines(text).of(key) == line


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
def test_the_line_of_a_broken_statement(text: str, line: int) -> None:
    lines = Lines(text)
    assert lines.broken == line
    assert lines.of("c") == 1, "later keys are unknown"


@given(st.text(st.sampled_from("[]{}=.,#'\"ab1\n \r"), max_size=40))
def test_any_text(text: str) -> None:
    """A text that tomllib accepts as a whole, it accepts statement by statement."""
    lines = Lines(text)
    assert 1 <= lines.of("a") <= text.count("\n") + 1
    try:
        tomllib.loads(text)
    except ValueError:
        return
    assert lines.broken is None
