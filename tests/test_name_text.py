"""Names as text: well-formed and printable forms, all of which name the same file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.name_text import name_text, shown, system_name

PIECES = [
    *(
        b"\\",
        b"\\\\",
        b"x",
        b"u",
        b"U",
        b"n",
        b"\n",
        b"00",
        b"1b",
        b"5c",
        b"2d",
        b"20",
        b"dc",
        b"ff",
    ),
    *(b"2d", b"20", b"dc", b"ff", b"udcff", b"\xff", b"\x1b", b" ", b"\xed\xb3\xbf"),
    *map(str.encode, ("\xe9", "\u202e", "\U0001f9c0")),
]
NAMES = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3)).map(b"".join)


@given(NAMES.filter(lambda data: b"\0" not in data))
def test_every_form_leads_back_to_the_name(data: bytes) -> None:
    """So no two names have a form in common."""
    name = os.fsdecode(data)
    text = name_text(name)
    text.encode()  # has no halves of surrogate pairs
    assert shown(text).isprintable()
    assert shown(text) == shown(text).strip()
    in_ascii = shown(text).encode("ascii", "backslashreplace").decode()
    for form in (text, shown(text), in_ascii):
        assert system_name(form) == name
        assert name_text(system_name(form)) == text


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("web.example.com", "web.example.com", "web.example.com"),
        ("web\\x2d1", "web\\x2d1", "web\\x2d1"),
        ("back\\slash", "back\\slash", "back\\slash"),
        ("\udcff", "\\udcff", "\\udcff"),
        ("\\udcff", "\\x5cudcff", "\\x5cudcff"),
        ("\x1b", "\x1b", "\\x1b"),
        ("\\x1b", "\\x5cx1b", "\\x5cx1b"),
        ("a\nb", "a\nb", "a\\nb"),
        ("a\\nb", "a\\x5cnb", "a\\x5cnb"),
        (" a b ", " a b ", "\\x20a b\\x20"),
        ("  ", "  ", "\\x20\\x20"),
        ("魚", "魚", "魚"),
    ],
)
def test_forms(name: str, text: str, form: str) -> None:
    assert (name_text(name), shown(text)) == (text, form)


@given(st.text(st.characters()))
def test_any_text(text: str) -> None:
    """As a program may send it: a name or a ValueError."""
    try:
        name = system_name(text)
    except ValueError:
        return
    assert system_name(name_text(name)) == name


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
@pytest.mark.parametrize("utf8", ["0", "1"])
def test_the_text_does_not_depend_on_the_locale(locale: str, utf8: str) -> None:
    code = (
        "import sys; from vhost_balloon.name_text import *\n"
        "print(ascii(name_text(sys.argv[1])), system_name(name_text(sys.argv[1])) == sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "魚 \udcff".encode(errors="surrogateescape")],
        env=os.environ | {"LC_ALL": locale, "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == f"{ascii(chr(0x9B5A))[:-1]} \\\\udcff' True"
