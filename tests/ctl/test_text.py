"""vhost-balloonctl: what sizes, tables and spark lines look like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.ctl.text import Column, pad, shorten, spark, table, width
from vhost_balloon.printable import printable
from vhost_balloon.sizes import format_size, parse_size

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1073741824", GIB),
        ("1", 1),
        ("1B", 1),
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("2G", 2 * GIB),
        ("2GiB", 2 * GIB),
        ("1.5G", 3 * GIB // 2),
        (".5k", 512),
        ("1.K", 1024),
        ("0.1G", GIB // 10),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        ("1.0", 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "0G", "-1", "-5M", "+5M", "5MB", "5 M", "M", ".", ".G", "1.5", "0.1K0", "1e9", "0x10",
     "8E", "9223372036854775808", "1" * 5000, "1_000", "\u0661G", "1.2.3G", "1GiBiB", "iB", "1iB",
     "5M\n", "nan", "inf", "1,5G"],
)  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is n"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (MIB - 1, "1 MiB"),
        (512 * MIB, "512 MiB"),
        (1023 * MIB, "1023 MiB"),
        (1500 * MIB, "1.46 GiB"),
        (int(9.996 * GIB), "10 GiB"),
        (12 * GIB + 345 * MIB, "12.3 GiB"),
        (100 * GIB, "100 GiB"),
        ((1 << 64) - 1, "16 EiB"),
    ],
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1, (1 << 63) - 1))
def test_a_shown_size_is_right_to_half_a_percent(size: int) -> None:
    shown = format_size(size).replace(" ", "")
    if shown not in ("8EiB",):  # beyond what an order may say
        assert abs(parse_size(shown) - size) <= max(size * 0.0051, 0)


@given(st.text())
def test_nothing_unprintable_goes_to_a_terminal(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_escapes_name_what_they_stand_for() -> None:
    assert printable("a\x1b[2Jb\n\u202e\udc80\u9b5a") == "a\\x1b[2Jb\\n\\u202e\\udc80\u9b5a"


def test_width_is_in_columns_of_a_terminal() -> None:
    assert width("web1") == 4
    assert width("\u9b5a") == 2
    assert width("e\u0301") == 1


@given(st.text(), st.integers(0, 30))
def test_a_shortened_text_fits(text: str, columns: int) -> None:
    assert width(shorten(printable(text), columns)) <= columns


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


def test_a_table_of_nothing_is_its_head() -> None:
    assert table(COLUMNS, []) == ["VM  SIZE  NOTE"]


@pytest.mark.parametrize(
    ("room", "head"),
    [(21, "VM       SIZE  NOTE"), (20, "VM    NOTE"), (12, "VM    NOTE"), (11, "VM"), (2, "VM")],
)
def test_a_table_leaves_columns_out_by_rank(room: int, head: str) -> None:
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
