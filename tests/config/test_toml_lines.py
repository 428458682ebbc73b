"""The lines of keys in a TOML text."""

from __future__ import annotations

import time
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.config.toml_lines import Key, Lines, Statement

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
    written: dict[Key, int] = {}

    def write(text: str) -> int:
        lines.append(fillings.pop())
        lines.extend(f"{' ' * indented}{text}".split("\n"))
        return len(lines) - text.count("\n")

    for key, (value, _) in keys.items():
        written[key,] = write(f"{quoted(key)} = {value}")
    for table in tables.keys() - keys:
        written[table,] = write(f"[ {quoted(table)} ]")
        for key, (value, _) in tables[table].items():
            written[table, key] = write(f"{quoted(key)} = {value}")
    text = "\n".join(lines)
    top = {key[0] for key in written}
    assert set(tomllib.loads(text)) == top, "the text is as intended"
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
        ("a = [" + "\n" * 5000 + "]\nb = 1", "b", 5002),
        ('a = """' + "\n'" * 5000 + '"""\nb = 1', "b", 5002),
        ('a = """\n\\"""\n""""\nb = 1', "b", 4),
        ("a = '''\n\\''''\nb = 1", "b", 3),
        ("a = [ # ]\n'#', ']', \"\\\"]\", {x = ']'}]\nb = 1", "b", 3),
        ('"]" = 1\n\'"""\' = 2\nb = 1', "b", 3),
        # Inside tables
        ("[a]\nx = 1\n[b]\nx = 2", "b.x", 4),
        ("[a.b]\n\nc.d = 1\ne = 2", "a.b.c.d", 3),
        ("[a.b]\n\nc.d = 1\ne = 2", "a.b.e", 4),
        ("[a]\n[a.b]\nx = 1\n[a.c]\nx = 2", "a.c.x", 5),
        ("a.b = 1\na.c = 2", "a.c", 2),
        ("[[a]]\nx = 1\n\n[a.b]\ny = 1", "a.b.y", 5),
        # What is not there, or has no line of its own
        ("x = 1\n[a]\n[a.b]\nx = 1\n[c]", "a.b.z", 3),
        ("x = 1\n[a]\ny = 1", "a.z", 2),
        ("x = 1\n[a]\nb = {c = 1, d = 2}", "a.b.d", 3),
        ("x = 1\n[a]\nb = {c = 1}", "a.b.d", 2),
        ("x = 1\n\n" + "a." * 20 + "z = 1", "a." * 20 + "y", 3),
    ],
)
def test_other_spellings(text: str, key: str, line: int) -> None:
    assert Lines(text).of(tuple(key.split("."))) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\n[vm\nb = 1", 2),
        ("a = 1\n\nb = [1,\n2", 3),
        ("a = 1\nb = " + "9" * 5000, 2),
        ("a = " + "[" * 50_000, 1),
        ("a = 1\n\n'b\nc = 1", 3),
        ('a = 1\nb = """\n\n"\nd = 1', 2),
    ],
)
def test_the_line_of_a_broken_statement(text: str, line: int) -> None:
    lines = Lines(text)
    assert lines.broken == line


def test_the_table_of_a_broken_statement() -> None:
    assert Lines("a = b\n[c]").broken_table == ()
    assert Lines('[vm]\n[vm."a.b"] # x\nx = 1\nmode = on\n[c]\ny = on').broken_table == (
        "vm",
        "a.b",
    )


def test_the_statement_around_a_line() -> None:
    lines = Lines("a = [\n1]\n\n[t]\nb = '''\n'''\n")
    found = [lines.around(line) for line in range(1, 8)]
    a, t, b = Statement(1, 2, ("a",)), Statement(4, 4, ("t",)), Statement(5, 6, ("t", "b"))
    assert found == [a, a, None, t, b, b, None]


def test_the_earlier_statement_of_the_same() -> None:
    lines = Lines("a = 1\nb = 2\n[t]\nb = 3\n[t.u]\n[t]\nb = 4\n[c]\na = 5")
    before = {}
    for line in range(1, 10):
        statement = lines.around(line)
        assert statement is not None
        earlier = lines.before(statement)
        before[line] = None if earlier is None else earlier.first_line
    assert before == {1: None, 2: None, 3: None, 4: 3, 5: 3, 6: 3, 7: 4, 8: None, 9: 8}


@pytest.mark.parametrize("piece", ['\\"', '"""', "'''", "[", "{", '"', "a = [\n", '"\\\n', "#"])
def test_long_nonsense_is_read_in_linear_time(piece: str) -> None:
    for start in ("", 'a = "', 'a = """', "a = ['"):
        began = time.process_time()
        Lines(start + piece * ((64 << 10) // len(piece)))
        assert time.process_time() - began < 5


@given(st.text(st.sampled_from("[]{}=.,#'\"ab1\n \r"), max_size=40))
def test_any_text(text: str) -> None:
    """A text that tomllib accepts as a whole, it accepts statement by statement."""
    lines = Lines(text)
    assert 1 <= lines.of(("a",)) <= text.count("\n") + 1
    try:
        tomllib.loads(text)
    except ValueError:
        return
    assert lines.broken is None
