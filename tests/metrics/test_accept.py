"""The format that an Accept header asks for."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.scrapes import OPENMETRICS as PROMETHEUS_IN_SHORT
from vhost_balloon.metrics.accept import OPENMETRICS, TEXT, negotiate

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_2_53 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
    "encoding=delimited;q=0.7,"
)
NAME = "application/openmetrics-text"


@pytest.mark.parametrize(
    "accept",
    [
        PROMETHEUS_3,
        PROTOBUF + PROMETHEUS_3,
        PROMETHEUS_2_53,
        PROMETHEUS_IN_SHORT,
        # Prometheus 2.5 to 2.32
        f"{NAME}; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        f"{NAME};version=1.0.0,{NAME};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        # Names and parameters
        NAME,
        f"{NAME};version=1.0.0",
        f"{NAME}; version=1.0.0; charset=utf-8",
        f'{NAME};version="1.0.0"',
        rf'{NAME};version="1\.0.\0"',
        "Application/OpenMetrics-TEXT;VERSION=1.0.0;Q=1.000",
        f'{NAME};q="0.5"',
        f'{NAME};x="a,b;c\\"d, text/plain";version=1.0.0',
        f" \t{NAME} \t;\tversion=1.0.0 ; q=1. ",
        f"{NAME};;version=1.0.0;",
        f"{NAME};escaping=dots;q=0.1",
        # Beside other ranges
        f",, ,{NAME},,",
        f"text/plain,{NAME}",
        f"{NAME},text/plain;version=0.0.4",
        f"text/plain;q=0.500,{NAME};q=0.5",
        f"{NAME};q=0.001,text/plain;q=0",
        f"{NAME};q=0.5,text/html,*/*;q=0.5",
        f"{NAME};q=0,{NAME};version=1.0.0",
        f"{NAME};version=2.0.0,{NAME};version=1.0.0;q=0.2,text/plain;q=0.1",
        f"{NAME};q=0.5,text/plain;version=1.0.0",
        "text/plain;q=0,*/*",
        "application/*",
        "application/*;q=0.5,text/*;q=0.4,*/*;q=0.9",
        # Beside malformed ranges
        f"hello,{NAME}",
        f"a/b/c,/,;,=,{NAME}",
        f"text/plain;q=2,{NAME};q=0.1",
        f"\xff\x00,{NAME}",
        f'{NAME},text/plain;x="has no end',
    ],
)
def test_openmetrics(accept: str) -> None:
    assert negotiate(accept) is OPENMETRICS


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain",
        'text/plain;version="0.0.4"',
        "text/plain;version=0.0.4;charset=utf-8",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
        "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
        "application/*,text/*",
        # Unsupported versions
        *(
            f"{NAME};version={version}"
            for version in (
                *("abc", "1.0.0-rc1", "1.0", "1", "2.0.0", "1.0.1", "1.0.00", "01.0.0", "0.0.4"),
                *("", '""', '"', '"1.0.0', "'1.0.0'", '" 1.0.0"', "1.0.0 x", "1,0,0", "-1", "\xb2"),
                *("1.0.0;version=1.0.0", "9" * 9000, "1." * 5000, "1.0.0\x00", "1_0.0", "nan"),
            )
        ),
        "text/plain;version=1.0.0",
        "text/plain;version=abc",
        # Weights
        f"{NAME};q=0",
        f"{NAME};q=0.000",
        f"{NAME};version=1.0.0;q=0,*/*",
        f"{NAME};version=1.0.0;q=0,{NAME}",
        f"{NAME};q=0,application/*",
        f"{NAME};q=0.4,text/plain;q=0.5",
        f"{NAME};q=0.4,*/*;q=0.5",
        f"{NAME};q=0.4,text/*",
        f"{NAME};version=1.0.0;q=0.1,{NAME};version=0.0.1,text/plain;q=0.5",
        *(
            f"{NAME};q={weight}"
            for weight in ("", "2", "1.1", "1.001", "-0", "+1", ".5", "1e0", "0.1234", "nan", "inf")
        ),
        *(f"{NAME};q={weight}" for weight in ("abc", "1;q=1", "0x1", "\u0661", "1" * 9000)),
        # Malformed or other ranges
        *("application/openmetrics-texts", "openmetrics-text", "*", "*/openmetrics-text"),
        *(f"{NAME}; version = 1.0.0", f"{NAME} version=1.0.0", f"{NAME};version", f"{NAME};=1"),
        *(f'x;y="{NAME}', f'"{NAME}"', f'x;y="\\",{NAME}', f"x{NAME}", f"{NAME}/x", f"{NAME};x"),
        "application /openmetrics-text",
        "application/openmetrics\u2011text",
        "applicat\u0131on/openmetrics-text",
    ],
)
def test_text(accept: str) -> None:
    assert negotiate(accept) is TEXT


def test_content_types() -> None:
    assert TEXT.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert OPENMETRICS.content_type == f"{NAME}; version=1.0.0; charset=utf-8"


GRAMMAR = st.lists(
    st.sampled_from(
        [
            *(
                NAME,
                "text/plain",
                "*/*",
                "application/*",
                "a/b",
                "version",
                "q",
                "charset",
                "1.0.0",
            ),
            *("0.0.4", "0.0.1", "0.5", "1", "0", "abc", ",", ";", "=", '"', "\\", " ", "\t", "/"),
            *(";version=1.0.0", ";q=0.5", "\x00", "\n", "\xff", "\ud800", "9" * 5000),
        ]
    ),
    max_size=30,
).map("".join)


@given(st.one_of(st.text(), GRAMMAR))
def test_any_text_is_answered_with_one_of_two_formats(accept: str) -> None:
    chosen = negotiate(accept)
    assert chosen in (TEXT, OPENMETRICS)
    if not re.search(r"application/(openmetrics-text|\*)|\*/\*", accept, re.IGNORECASE):
        assert chosen is TEXT


PARTS = st.sampled_from([NAME, "text/plain", "text/*", "application/*", "*/*", "image/png"])
VERSIONS = st.sampled_from([None, "1.0.0", "0.0.1", "0.0.4", "2.0.0"])
WEIGHTS = st.sampled_from([None, "0", "0.2", "0.25", "0.5", "1"])
RANGES = st.lists(st.tuples(PARTS, VERSIONS, WEIGHTS), max_size=6)


def written(ranges: list[tuple[str, str | None, str | None]]) -> str:
    """Ranges without anything optional."""
    return ",".join(
        name
        + (f";version={version}" if version is not None else "")
        + (f";q={weight}" if weight is not None else "")
        for name, version, weight in ranges
    )


def written_oddly(ranges: list[tuple[str, str | None, str | None]], r: random.Random) -> str:
    """The same ranges in another spelling."""

    def spelled(word: str) -> str:
        return "".join(r.choice((letter.lower(), letter.upper())) for letter in word)

    def space() -> str:
        return r.choice(("", "", " ", "\t "))

    elements = []
    for name, version, weight in ranges:
        parameters = ["escaping=allow-utf-8", 'x=",;\\""', ""][: r.randrange(4)]
        if version is not None:
            parameters.append(
                spelled("version") + r.choice((f"={version}", f'="{version}"', f'="\\{version}"'))
            )
        if weight is not None:
            zeros = ("", ".", ".000") if weight in "01" else ("", "0")
            parameters.append(f"{spelled('q')}={weight}{r.choice(zeros)}")
        r.shuffle(parameters)
        elements.append(f"{space()};{space()}".join([spelled(name), *parameters]))
    garbage = ("", "garbage", "text/plain;q=7", f"{NAME};version", "/", 'a/b;c="d"e', "\x7f/\xff")
    for _ in range(r.randrange(4)):
        elements.insert(r.randint(0, len(elements)), r.choice(garbage))
    return ",".join(space() + element + space() for element in elements)


@given(RANGES, st.randoms(use_true_random=False))
@example([(NAME, "1.0.0", "0.5"), ("text/plain", "0.0.4", "0.5")], random.Random(1))
def test_how_ranges_are_written_makes_no_difference(
    ranges: list[tuple[str, str | None, str | None]], r: random.Random
) -> None:
    assert negotiate(written_oddly(ranges, r)) is negotiate(written(ranges))


@given(RANGES, st.randoms(use_true_random=False))
def test_order_makes_no_difference(
    ranges: list[tuple[str, str | None, str | None]], r: random.Random
) -> None:
    shuffled = list(ranges)
    r.shuffle(shuffled)
    assert negotiate(written(shuffled)) is negotiate(written(ranges))


@given(RANGES)
def test_a_refused_format_is_not_sent_where_the_other_is_accepted(
    ranges: list[tuple[str, str | None, str | None]],
) -> None:
    others = [each for each in ranges if each[0] not in (NAME, "text/plain")]
    refused, taken = (NAME, "1.0.0", "0"), ("text/plain", "0.0.4", "0.001")
    assert negotiate(written([*others, refused, taken])) is TEXT
    refused, taken = ("text/plain", "0.0.4", "0"), (NAME, "1.0.0", "0.001")
    assert negotiate(written([*others, refused, taken])) is OPENMETRICS
