"""The manual pages: they say of the command lines all that is so, and nothing that is not."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import vhost_balloon
from tests.rig.provisioning.packages import MANDOC
from vhost_balloon.config import command_line
from vhost_balloon.ctl import options
from vhost_balloon.hub import options as hub_options

FOLDER = Path(vhost_balloon.__file__).parent / "man"
PROGRAMS = {
    "vhost-balloon": command_line.build_parser(),
    "vhost-balloon-hub": hub_options.build_parser(),
}
PAGES = {**PROGRAMS, "vhost-balloonctl": options.build_parser()}


def plain(roff: str) -> str:
    """A page's text: without macros, fonts and escapes, a line for a line."""
    text = re.sub(r"\\f[BIRP]|\\&", "", roff).replace("\\-", "-").replace("\\(aq", "'")
    text = re.sub(r'^\.[A-Z]{1,2} ?|"', "", text, flags=re.MULTILINE)
    return re.sub(r"(--[a-z-]+=) ", r"\1", text)


def page(name: str) -> str:
    return (FOLDER / f"{name}.1").read_text()


def sections(name: str) -> dict[str, str]:
    """The commands' sections of vhost-balloonctl's page, by command; "" is what is before."""
    parts = re.split(r"^\.SS (.*)\n", page(name), flags=re.MULTILINE)
    heads = [plain(head).split()[0] for head in parts[1::2]]
    return {"": parts[0]} | dict(zip(heads, parts[2::2], strict=True))


def flags(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each long option that --help shows, and what stands for its value."""
    for action in arguments(parser):
        if action.help == argparse.SUPPRESS:
            continue
        for flag in action.option_strings:
            if flag.startswith("--"):
                value = "|".join(action.choices or ()) or action.metavar or ""
                yield flag, str(value) if action.nargs != 0 else ""


def entries(roff: str) -> dict[str, str]:
    """The options that are listed, and what stands for their values."""
    found = {}
    for head in re.findall(r"^\.TP\n(.*)$", roff, re.MULTILINE):
        if match := re.fullmatch(r"(?:-h , +)?(--[a-z-]+)(?:=(\S+))?", plain(head)):
            found[match[1]] = match[2] or ""
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_option_of_a_program_is_listed_and_no_other(name: str) -> None:
    assert entries(page(name)) == dict(flags(PROGRAMS[name]))


def test_every_command_is_listed_and_no_other() -> None:
    known = commands(PAGES["vhost-balloonctl"])
    assert set(sections("vhost-balloonctl")) == {"", *known}


def test_every_option_of_a_command_is_listed_there_and_no_other() -> None:
    found, parser = sections("vhost-balloonctl"), PAGES["vhost-balloonctl"]
    common = {"--help", "--folder", "--control-socket", "--json"}
    assert set(entries(found[""])) == {*dict(flags(parser)), *common}
    for name, command in commands(parser).items():
        own = {flag: value for flag, value in flags(command) if flag not in common}
        assert entries(found[name]) == own, name


def test_every_operand_of_a_command_is_named_in_its_heading() -> None:
    heads = re.findall(r"^\.SS (.*)$", page("vhost-balloonctl"), re.MULTILINE)
    said = {plain(head).split()[0]: plain(head).split()[1:] for head in heads}
    for name, command in commands(PAGES["vhost-balloonctl"]).items():
        operands = [
            "|".join(action.choices or ()) or action.metavar
            for action in arguments(command)
            if not action.option_strings
        ]
        assert said[name] == operands


@pytest.mark.parametrize("name", PAGES)
def test_no_text_names_an_option_that_is_not_there(name: str) -> None:
    known = {flag for parser in PAGES.values() for flag, _ in flags(parser)}
    for command in commands(PAGES["vhost-balloonctl"]).values():
        known |= set(dict(flags(command)))
    assert set(re.findall(r"--[a-z][a-z-]+", plain(page(name)))) <= known


@pytest.mark.parametrize("name", PAGES)
def test_defaults_are_the_ones_in_force(name: str) -> None:
    """Where --help says a default, the page says the same."""
    helps = {
        flag: action.help or ""
        for parser in (PAGES[name], *commands(PAGES[name]).values())
        for action in arguments(parser)
        for flag in action.option_strings
    }
    text = " ".join(plain(page(name)).split())
    for flag, said in helps.items():
        for default in re.findall(r"default ([0-9]+)", said):
            assert re.search(rf"{flag}=\S+ [^=]*default {default}\b", text), flag


@pytest.mark.rig(MANDOC)
@pytest.mark.parametrize("name", PAGES)
def test_mandoc_finds_no_fault(name: str) -> None:
    tree = MANDOC.folder
    loader = [f"{tree}/usr/lib64/ld-linux-x86-64.so.2", "--library-path"]
    command = [*loader, f"{tree}/usr/lib/x86_64-linux-gnu", f"{tree}/usr/bin/mandoc"]
    done = subprocess.run(
        [*command, "-T", "lint", "-W", "warning", FOLDER / f"{name}.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
