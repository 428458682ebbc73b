"""Finds where this host fetches Debian from, by reading its apt configuration.

The rig names no mirror. It reuses the archive chosen by the host's administrator and only
requests other suites from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CODENAMES: Final = ("bookworm", "trixie", "forky", "sid")
_CLASSES: Final = ("stable", "oldstable", "oldoldstable", "testing", "unstable")
_SUITES: Final = frozenset((*_CODENAMES, *_CLASSES))
_ONE_LINE: Final = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<rest>\S.*)")


@dataclass(frozen=True)
class Archive:
    """One archive of the host's apt configuration.

    Attributes:
        uri: as written in the configuration, any scheme apt knows.
        suite: one of its suites that the host itself uses.
        signed_by: value of Signed-By (paths, fingerprints or an embedded key), "" if none.
    """

    uri: str
    suite: str
    signed_by: str


def debian_archives(etc_apt: Path) -> list[Archive]:
    """List the archives under etc_apt that may be Debian's main one, most likely first.

    Third parties also name their suites after Debian's releases, so the caller must try them:
    only Debian's own archive has the other suites under a trusted signature.
    """
    found = [archive for path in _files(etc_apt) for archive in _parse(path)]
    unique = list(dict.fromkeys(found))
    # A mirror that the host trusts through Debian's own keyring is the best candidate.
    return sorted(unique, key=lambda archive: "debian-archive" not in archive.signed_by)


def _files(etc_apt: Path) -> list[Path]:
    parts = etc_apt / "sources.list.d"
    files = [etc_apt / "sources.list", *sorted(parts.glob("*.list"))]
    return [path for path in [*files, *sorted(parts.glob("*.sources"))] if path.is_file()]


def _parse(path: Path) -> Iterator[Archive]:
    text = path.read_text(errors="replace")
    return _deb822(text) if path.suffix == ".sources" else _one_line(text)


def _one_line(text: str) -> Iterator[Archive]:
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match is None:
            continue
        options = dict(
            option.split("=", 1) for option in (match["options"] or "").split() if "=" in option
        )
        words = match["rest"].split()
        if len(words) >= 3:
            signed_by = options.get("signed-by", "").replace(",", " ")
            yield from _candidates([words[0]], [words[1]], words[2:], signed_by)


def _deb822(text: str) -> Iterator[Archive]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in {"no", "false", "0"}:
            continue
        yield from _candidates(
            fields.get("uris", "").split(),
            fields.get("suites", "").split(),
            fields.get("components", "").split(),
            fields.get("signed-by", ""),
        )


def _fields(stanza: str) -> dict[str, str]:
    """Parse one stanza; continuation lines keep their leading blank (embedded keys need it)."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in {" ", "\t"} and name:
            fields[name] += "\n" + line
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _candidates(
    uris: list[str], suites: list[str], components: list[str], signed_by: str
) -> Iterator[Archive]:
    if "main" not in components:
        return
    for uri in uris:
        if uri.startswith("cdrom:"):
            continue
        for suite in suites:
            if suite in _SUITES:
                yield Archive(uri, suite, signed_by)
