"""The manual pages describe every option, setting and QMP command, and no other."""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vhost_balloon
from tests.rig.provisioning.packages import MANDOC
from tests.support.fakes.policy_documents import POLICY_MODES, POLICY_ON
from tests.support.parsers import arguments, commands
from vhost_balloon.config import command_line
from vhost_balloon.ctl import options
from vhost_balloon.examiner import options as examiner_options
from vhost_balloon.figures.policy_info import PARTS, POLICY_INFO
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.figures.refusal import EVERY_REASON, PAUSE_REASONS
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.hub import options as hub_options
from vhost_balloon.hub.commands import COMMANDS, Hub
from vhost_balloon.hub.config import POLICY_SETTINGS, VM_SETTINGS
from vhost_balloon.hub.schema import describe
from vhost_balloon.metrics.family import PREFIX
from vhost_balloon.metrics.policy_families import POLICY_FAMILIES, PolicyCollector
from vhost_balloon.qmp_server.command import Command
from vhost_balloon.vm.settings import SETTINGS

FOLDER = Path(vhost_balloon.__file__).parent / "man"
PROGRAMS = {
    "vhost-balloon": command_line.build_parser(),
    "vhost-balloon-examiner": examiner_options.build_parser(),
    "vhost-balloon-hub": hub_options.build_parser(),
}
PAGES = {**PROGRAMS, "vhost-balloonctl": options.build_parser()}


FORMATS = ("vhost-balloon.toml", "vhost-balloon-hub.toml", "vhost-balloon-qmp")


def plain(roff: str) -> str:
    """A page's text: without macros, fonts and escapes, line by line."""
    text = re.sub(r"\\f[BIRP]|\\&", "", roff).replace("\\-", "-").replace("\\(aq", "'")
    text = re.sub(r'^\.[A-Z]{1,2} ?|"', "", text, flags=re.MULTILINE)
    return re.sub(r"(--[a-z-]+=) ", r"\1", text)


def page(name: str) -> str:
    [path] = FOLDER.glob(f"{name}.[0-9]")
    return path.read_text()


def sections(name: str) -> dict[str, str]:
    """The commands' sections of vhost-balloonctl's page, by command; "" is the text before them."""
    parts = re.split(r"^\.SS (.*)\n", page(name), flags=re.MULTILINE)
    heads = [plain(head).split()[0] for head in parts[1::2]]
    return {"": parts[0]} | dict(zip(heads, parts[2::2], strict=True))


def flags(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each long option that --help shows, and the name of its value."""
    for action in arguments(parser):
        if action.help == argparse.SUPPRESS:
            continue
        for flag in action.option_strings:
            if flag.startswith("--"):
                value = "|".join(action.choices or ()) or action.metavar or ""
                yield flag, str(value) if action.nargs != 0 else ""


def entries(roff: str) -> dict[str, str]:
    """The listed options, and the names of their values."""
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
    common = {"--help", "--folder", "--control-socket", "--hub-socket", "--json"}
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


@pytest.mark.parametrize("name", [*PAGES, *FORMATS])
def test_no_text_names_an_option_that_is_not_there(name: str) -> None:
    known = {flag for parser in PAGES.values() for flag, _ in flags(parser)}
    for command in commands(PAGES["vhost-balloonctl"]).values():
        known |= set(dict(flags(command)))
    assert set(re.findall(r"--[a-z][a-z-]+", plain(page(name)))) <= known


@pytest.mark.parametrize("name", PAGES)
def test_defaults_are_the_ones_in_force(name: str) -> None:
    """Where --help gives a default, the page gives the same."""
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


def section(name: str, head: str) -> str:
    """A page's section of that heading."""
    parts = re.split(r"^\.SH (.*)\n", page(name), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[head]


def heads(roff: str) -> list[str]:
    """The entries of a section; each may name several things."""
    return [plain(head) for head in re.findall(r"^\.TP\n(.*)$", roff, re.MULTILINE)]


def listed(roff: str) -> list[str]:
    return sorted(name for head in heads(roff) for name in re.split(" *, *", head))


def test_every_setting_is_listed_and_no_other() -> None:
    settings = heads(section("vhost-balloon.toml", "SETTINGS"))
    assert sorted(head.split()[0] for head in settings) == sorted(SETTINGS)


@pytest.mark.parametrize(
    ("tables", "known"),
    [("[POLICY]", POLICY_SETTINGS), ("[DEFAULTS] AND [VM.NAME]", VM_SETTINGS)],
)
def test_every_setting_of_the_hub_is_listed_and_no_other(
    tables: str, known: dict[str, object]
) -> None:
    settings = heads(section("vhost-balloon-hub.toml", f"SETTINGS OF {tables}"))
    assert sorted(head.split()[0] for head in settings) == sorted(known)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A daemon's answers to query-vms, without a front end, and to query-qmp-schema."""
    folder = tmp_path_factory.mktemp("daemon")
    sockets = [f"--socket-path={folder}/web1.sock", f"--control-socket={folder}/web1.control"]
    command = [sys.executable, "-m", "vhost_balloon", *sockets]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        while "serving" not in (line := daemon.stderr.readline()):
            assert line, "it ended"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{folder}/web1.control")
            for name in ("qmp_capabilities", "query-vms", "query-qmp-schema"):
                client.sendall(json.dumps({"execute": name}).encode())
            client.shutdown(socket.SHUT_WR)
            _, _, vms, schema = map(json.loads, client.makefile())
        daemon.terminate()
    return vms["return"], schema["return"]


@pytest.mark.parametrize(("head", "kind"), [("COMMANDS", "command"), ("EVENTS", "event")])
def test_every_command_and_event_is_listed_with_its_arguments(
    answers: tuple[Any, Any], head: str, kind: str
) -> None:
    _, schema = answers
    assert sorted(heads(section("vhost-balloon-qmp", head))) == of_kind(schema, kind)


@pytest.mark.parametrize(("head", "kind"), [("COMMANDS", "command"), ("EVENTS", "event")])
def test_every_command_and_event_of_the_hub_is_listed(head: str, kind: str) -> None:
    own: dict[str, Command[Hub]] = {
        name: Command(lambda hub, arguments: {})
        for name in ("query-version", "query-commands", "query-qmp-schema")
    }
    found = sorted(heads(section("vhost-balloon-qmp", f"{head} OF THE HUB")))
    assert found == of_kind(describe({**COMMANDS, **own}), kind)


def test_every_member_and_reason_of_the_policy_is_listed() -> None:
    parts = (POLICY_INFO, PARTS["PolicyHost"], PARTS["PolicyVm"])
    members = {member.removeprefix("*") for part in parts for member in part}
    said = listed(section("vhost-balloon-qmp", "MEMBERS OF QUERY\\-POLICY"))
    assert said == sorted(members)
    reasons = listed(section("vhost-balloon-hub", "REASONS OF THE POLICY"))
    assert reasons == sorted(reason.value for reason in Reason)


def test_every_metric_of_the_policy_is_listed_and_no_other() -> None:
    listing = plain(section("vhost-balloon-hub", "METRICS"))
    collector = PolicyCollector(lambda: POLICY_ON, POLICY_MODES)
    known = {PREFIX + family.name for family in POLICY_FAMILIES}
    known |= {family.name for family in collector.collect()}
    assert set(re.findall(rf"{PREFIX}policy_\w+", listing)) == known


def of_kind(schema: Any, kind: str) -> list[str]:
    """The commands or events of a schema, with their arguments."""
    objects = {entry["name"]: entry["members"] for entry in schema if "members" in entry}
    return sorted(
        " ".join([entry["name"], *map(argument, objects[entry["arg-type"]])])
        for entry in schema
        if entry["meta-type"] == kind
    )


def argument(member: dict[str, Any]) -> str:
    return f"[{member['name']}]" if "default" in member else member["name"]


def test_every_member_of_query_vms_is_listed(answers: tuple[Any, Any]) -> None:
    [vm], _ = answers
    assert vm.keys() <= set(listed(section("vhost-balloon-qmp", "MEMBERS OF QUERY\\-VMS")))


def test_every_state_and_reason_for_refusal_is_listed() -> None:
    members = section("vhost-balloon-qmp", "MEMBERS OF QUERY\\-VMS")
    states = re.findall(r"^[.]B (\S+)\n\(", members, re.MULTILINE)
    assert sorted(map(plain, states)) == sorted(state.value for state in VmState)
    reasons = section("vhost-balloon-qmp", "REASONS FOR REFUSAL")
    assert listed(reasons) == sorted(EVERY_REASON)
    (paused,) = re.findall(r"pause\\-reasons\n(.*?)^[.]TP", members, re.MULTILINE | re.DOTALL)
    named = re.findall(r"^[.]BR? ([a-z\\-]+)", paused, re.MULTILINE)
    assert sorted(map(plain, named)) == sorted(PAUSE_REASONS)


@pytest.mark.rig(MANDOC)
@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_mandoc_finds_no_fault(path: Path) -> None:
    tree = MANDOC.folder
    loader = [f"{tree}/usr/lib64/ld-linux-x86-64.so.2", "--library-path"]
    command = [*loader, f"{tree}/usr/lib/x86_64-linux-gnu", f"{tree}/usr/bin/mandoc"]
    done = subprocess.run(
        [*command, "-T", "lint", "-W", "warning", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
