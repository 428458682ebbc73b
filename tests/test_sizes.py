"""Sizes in bytes as text with binary units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.sizes import SMALLEST_GUEST, format_size, implausible, parse_size

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
        ("1.04K", 1065),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        ("1.0", 1),
    ],
)
def test_parsing(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "0G", "-1", "-5M", "+5M", "5MB", "5 M", "M", ".", ".G", "1.5", "0.1K0", "1e9", "0x10",
     "8E", "9223372036854775808", "1" * 5000, "1_000", "\u0661G", "1.2.3G", "1GiBiB", "iB", "1iB",
     "5M\n", "nan", "inf", "1,5G"],
)  # fmt: skip
def test_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *(
            ("4GB", "4G"),
            ("4gb", "4g"),
            ("1024MB", "1024M"),
            ("4Gi", "4G"),
            ("1,5G", "1.5G"),
            ("4 G", "4G"),
        ),
        *(("1,5 GB", "1.5G"), (" 512M\n", "512M"), ("512 MiB", "512MiB"), ("1 024M", "1024M")),
    ],
)
def test_what_is_meant(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f": did you mean {meant}\\?$"):
        parse_size(text)


@pytest.mark.parametrize(
    "text", ["1,5,5G", "lots", "1e9", "0x10", "4GBB", "GB", "1,2.3G", "M" * 99]
)
def test_nothing_is_meant(text: str) -> None:
    with pytest.raises(ValueError, match=r"or 1073741824$"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1024", "1024 is 1 KiB, less than a guest can run on; write 1024M for MiB"),
        (
            "512K",
            "512K is 512 KiB, less than a guest can run on; write 512M for MiB or 512G for GiB",
        ),
        ("1024B", "1024B is 1 KiB, less than a guest can run on; write 1024M for MiB"),
        ("4", "4 is 4 B, less than a guest can run on; write 4G for GiB"),
        ("1048576", "1048576 is 1 MiB, less than a guest can run on; write 1048576K for KiB"),
        ("0.01G", "0.01G is 10.2 MiB, less than a guest can run on"),
        (".5M", ".5M is 512 KiB, less than a guest can run on"),
        ("15M", "15M is 15 MiB, less than a guest can run on; write 15G for GiB"),
    ],
)
def test_a_memory_that_can_only_be_a_mistake(text: str, hint: str) -> None:
    assert implausible(text, parse_size(text)) == hint


@given(st.integers(1, (1 << 63) - 1), st.sampled_from(["", "B", "K", "M", "G", "KiB", "mib"]))
def test_a_hint_is_plausible_itself(number: int, unit: str) -> None:
    text = f"{number}{unit}"
    try:
        size = parse_size(text)
    except ValueError:
        return
    hint = implausible(text, size)
    assert (hint is None) == (size >= SMALLEST_GUEST)
    for word in (hint or "").partition("; write ")[2].split(" or "):
        if word:
            meant = word.split()[0]
            assert implausible(meant, parse_size(meant)) is None


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
def test_formatting(size: int | None, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1, (1 << 63) - 1))
def test_a_formatted_size_is_accurate_to_half_a_percent(size: int) -> None:
    shown = format_size(size).replace(" ", "")
    if shown != "8EiB":  # too large to parse
        assert abs(parse_size(shown) - size) <= size * 0.0051
