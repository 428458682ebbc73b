"""Negotiates the format of a scrape from its Accept header (RFC 9110 section 12.5.1). Pure.

Hand-written and strict, because the client library raises on versions that it cannot parse, and
invents a format for any version that it can.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""RFC 9110 section 5.6.2."""

_LEXEMES: Final = re.compile(r'"(?:\\.|[^"\\])*"?|[,;]|[^",;]+', re.DOTALL)
"""Quoted strings, separators and the text between them. No two alternatives start with the same
character, so matching takes linear time."""

_RANGE: Final = re.compile(rf"({TOKEN})/({TOKEN})")
_PARAMETER: Final = re.compile(rf'({TOKEN})=(?:({TOKEN})|"((?:\\.|[^"\\])*)")', re.DOTALL)
_WEIGHT: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


@dataclass(frozen=True, slots=True)
class MediaType:
    """A supported format. also: older versions whose readers understand it."""

    type: str
    subtype: str
    version: str
    also: tuple[str, ...] = ()

    @property
    def content_type(self) -> str:
        return f"{self.type}/{self.subtype}; version={self.version}; charset=utf-8"


TEXT: Final = MediaType("text", "plain", "0.0.4")
OPENMETRICS: Final = MediaType("application", "openmetrics-text", "1.0.0", ("0.0.1",))
"""Prometheus asks for 0.0.1 beside 1.0.0; old versions ask for 0.0.1 only."""


class _Match(NamedTuple):
    """How a range matches a format; the most specific match counts."""

    level: int
    """2 for the format's name, 1 for its type, 0 for anything."""
    is_exact: bool
    """Whether the range names the supported version."""
    weight: float


class _MediaRange(NamedTuple):
    type: str
    subtype: str
    version: str | None
    weight: float

    def match(self, media: MediaType) -> _Match | None:
        if (self.type, self.subtype) == (media.type, media.subtype):
            level = 2
        elif (self.type, self.subtype) == (media.type, "*"):
            level = 1
        elif (self.type, self.subtype) == ("*", "*"):
            level = 0
        else:
            return None
        if self.version not in (None, media.version, *media.also):
            return None
        return _Match(level, self.version == media.version, self.weight)


def negotiate(accept: str) -> MediaType:
    """The format for a client with this Accept header: OPENMETRICS or TEXT.

    accept: the values of all Accept lines, joined by commas. Elements that break the grammar are
    skipped. Parameters other than version and q are ignored. OpenMetrics goes to clients that
    prefer it, or that name it and rate it as high as text. All others get text, even if they accept
    neither, because every scraper reads it.
    """
    ranges = list(_media_ranges(accept))
    text, openmetrics = _best(ranges, TEXT), _best(ranges, OPENMETRICS)
    if openmetrics.weight > text.weight:
        return OPENMETRICS
    is_named = openmetrics.level == 2 and openmetrics.weight > 0
    return OPENMETRICS if is_named and openmetrics.weight == text.weight else TEXT


def _best(ranges: Iterable[_MediaRange], media: MediaType) -> _Match:
    matches = (media_range.match(media) for media_range in ranges)
    return max((match for match in matches if match is not None), default=_Match(0, False, 0.0))


def _media_ranges(accept: str) -> Iterator[_MediaRange]:
    for element in filter(None, _split(accept, ",")):
        media_range = _media_range(element)
        if media_range is not None:
            yield media_range


def _media_range(element: str) -> _MediaRange | None:
    """None if element breaks the grammar."""
    name, *parameters = _split(element, ";")
    match = _RANGE.fullmatch(name)
    values = _parameters(parameters)
    if match is None or values is None:
        return None
    weight = values.get("q", "1")
    if not _WEIGHT.fullmatch(weight):
        return None
    kind, subtype = match[1].lower(), match[2].lower()
    return _MediaRange(kind, subtype, values.get("version"), float(weight))


def _parameters(parameters: Iterable[str]) -> dict[str, str] | None:
    """Values by lower-case name; None if a parameter is malformed or given twice."""
    values: dict[str, str] = {}
    for parameter in filter(None, parameters):
        match = _PARAMETER.fullmatch(parameter)
        if match is None or match[1].lower() in values:
            return None
        token, quoted = match[2], match[3]
        values[match[1].lower()] = token or re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
    return values


def _split(text: str, separator: str) -> Iterator[str]:
    """The parts between unquoted separators, without surrounding spaces.

    An unterminated quoted string extends to the end.
    """
    part = ""
    for lexeme in _LEXEMES.findall(text):
        if lexeme == separator:
            yield part.strip(" \t")
            part = ""
        else:
            part += lexeme
    yield part.strip(" \t")
