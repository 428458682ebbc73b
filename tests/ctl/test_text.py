"""vhost-balloonctl's text on a terminal: widths, tables and spark lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.ctl.text import Column, fold, pad, shorten, spark, table, width
from vhost_balloon.printable import printable


@given(st.text())
def test_a_printable_text_contains_nothing_unprintable(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_escapes() -> None:
    assert printable("a\x1b[2Jb\n\u202e\udc80\u9b5a") == "a\\x1b[2Jb\\n\\u202e\\udc80\u9b5a"


def test_width_is_in_columns_of_a_terminal() -> None:
    assert width("web1") == 4
    assert width("\u9b5a") == 2
    assert width("e\u0301") == 1


@given(st.text(), st.integers(0, 30))
def test_a_shortened_text_fits(text: str, columns: int) -> None:
    assert width(shorten(printable(text), columns)) <= columns


def test_a_shortened_text_keeps_what_fits() -> None:
    assert shorten("web1", 4) == "web1"
    assert shorten("web12", 4) == "web~"
    assert shorten("\u9b5a\u9b5a\u9b5a", 4) == "\u9b5a~"
    assert shorten("e\u0301e\u0301e\u0301", 2) == "e\u0301~"
    assert [shorten("web1", columns) for columns in (1, 0, -1)] == ["~", "", ""]


def test_shortening_looks_at_each_character_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM's daemon chooses the text, and the live screen cuts it again and again."""
    looked: list[str] = []

    def east_asian_width(c: str) -> str:
        looked.append(c)
        return "W"

    monkeypatch.setattr("unicodedata.east_asian_width", east_asian_width)
    assert shorten("\u9b5a" * 4000, 5) == "\u9b5a\u9b5a~"
    assert len(looked) <= 8000


@given(st.text(), st.integers(1, 30))
def test_folded_lines_fit_and_lose_no_word_that_fits(text: str, columns: int) -> None:
    lines = fold(printable(text), columns)
    assert all(width(line) <= columns for line in lines)
    words = printable(text).split()
    if all(width(word) <= columns for word in words):
        assert " ".join(lines).split() == words


def test_folding() -> None:
    assert fold("one two three", 8) == ["one two", "three"]
    assert fold("one two three", None) == ["one two three"]
    assert fold("", 8) == [""]


def test_padding() -> None:
    assert pad("\u9b5a", 4) == "\u9b5a  "
    assert pad("1", 3, right=True) == "  1"
    assert pad("long", 2) == "long"


COLUMNS = (
    Column("VM"),
    Column("SIZE", right=True, rank=2),
    Column("NOTE", rank=1),
)
ROWS = [("web1", "1 GiB", "x"), ("a", "512 MiB", "longer")]


def test_a_table_is_aligned() -> None:
    assert table(COLUMNS, ROWS) == [
        "VM       SIZE  NOTE",
        "web1    1 GiB  x",
        "a     512 MiB  longer",
    ]


def test_a_row_of_two_cells_is_a_text() -> None:
    assert table(COLUMNS, [*ROWS, ("silent", "a text longer than a cell")]) == [
        "VM         SIZE  NOTE",
        "web1      1 GiB  x",
        "a       512 MiB  longer",
        "silent  a text longer than a cell",
    ]
    assert table(COLUMNS, [("b", "text")], 4) == ["VM", "b  ~"]


def test_an_empty_table_is_its_head() -> None:
    assert table(COLUMNS, []) == ["VM  SIZE  NOTE"]


@pytest.mark.parametrize(
    ("room", "head"),
    [(21, "VM       SIZE  NOTE"), (20, "VM    NOTE"), (12, "VM    NOTE"), (11, "VM"), (2, "VM")],
)
def test_a_table_drops_columns_by_rank(room: int, head: str) -> None:
    lines = table(COLUMNS, ROWS, room)
    assert lines[0] == head
    assert all(width(line) <= room for line in lines)


def test_a_spark_line() -> None:
    assert spark([None, 0, 1, 4, 8], 8, 5) == " ▁▁▄█"
    assert spark([8, 4], 8, 4) == "  █▄"
    assert spark([1, 2, 8], 8, 2) == "▂█"
    assert spark([99], 8, 1) == "█"
    assert spark([5, 5], 0, 2) == "  "
    assert spark([], 8, 3) == "   "
    assert spark([4, 8], 8, 2, unicode=False) == "=@"
    assert spark([1], 8, 0) == ""
