"""upgrade and reload: for the daemons of some VMs or of all."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any, Final

from vhost_balloon.ctl import folder, listing, model
from vhost_balloon.ctl.client import ANSWER_SECONDS, Client, Round
from vhost_balloon.ctl.errors import CtlError, Silent
from vhost_balloon.ctl.link import Link
from vhost_balloon.ctl.output import Output
from vhost_balloon.name_text import shown
from vhost_balloon.printable import printable

CHECK_SECONDS: Final = 20.0
"""Time beyond the usual limit for the daemon to check that the new program starts."""
BACK_SECONDS: Final = 5.0
"""Time limit for the upgraded daemon to answer; after it the upgrade has failed."""
_RETRY_SECONDS: Final = 0.05


def upgrade(options: argparse.Namespace, output: Output) -> None:
    """Make daemons re-execute the installed program, one after the other.

    Raises CtlError at the first that does not answer again; the others are left as they are.
    """
    paths = _paths(options)
    done = []
    try:
        for name, path in paths.items():
            version, state = _upgrade(name, path)
            done.append({"id": name, "version": version})
            if not options.json:
                output.lines([f"{shown(name)}: version {version}, {printable(state)}"])
    finally:
        if options.json and done:
            output.json(done)


def _paths(options: argparse.Namespace) -> dict[str, str]:
    """Return the control sockets' paths of the named VMs, or of all. Raises CtlError."""
    paths = folder.find(options, None if options.all else options.vms)
    if not paths:
        raise CtlError(listing.no_vm(options))
    return paths


def _upgrade(name: str, path: str) -> tuple[str, str]:
    """Upgrade one daemon and return its new version and state. Raises CtlError."""
    try:
        with Client(path, name) as client:
            client.execute("upgrade", patience=CHECK_SECONDS)
            deadline = time.monotonic() + BACK_SECONDS
            if not client.wait_end(BACK_SECONDS):
                raise CtlError("the daemon still runs the old program")
    except CtlError as error:
        raise CtlError(f"{shown(name)}: {error}") from None
    reason = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with Client(path, name, left) as successor:
                version = _version(successor.execute("query-version"))
                return version, model.query_vm(successor).state
        except Silent as error:
            reason = reason or str(error)
        except CtlError as error:
            reason = str(error)
        time.sleep(_RETRY_SECONDS)
    raise CtlError(
        f"{shown(name)} did not answer within {BACK_SECONDS:g} s of its upgrade ({reason})"
    )


def _version(answer: Any) -> str:
    """Raises CtlError."""
    numbers = answer.get("qemu") if isinstance(answer, dict) else None
    if not isinstance(numbers, dict):
        raise model.unexpected("query-version")
    parts = [model.field(numbers, part, int, 0) for part in ("major", "minor", "micro")]
    return ".".join(map(str, parts))


def reload(options: argparse.Namespace, output: Output) -> None:
    """Make daemons read their configuration again, all at once.

    Raises CtlError if one fails; the others are reloaded anyway.
    """
    paths = _paths(options)
    links = {name: Link(path) for name, path in paths.items()}
    for link in links.values():
        link.ask("config-reload")
    Round(links.values(), ANSWER_SECONDS).run()
    answers = {name: _changes(name, link) for name, link in links.items()}
    failed = [name for name, answer in answers.items() if "error" in answer]
    if failed and len(answers) == 1:
        raise CtlError(f"{shown(failed[0])}: {answers[failed[0]]['error']}")
    if options.json:
        output.json([*answers.values()])
    else:
        output.lines(printable(_line(answer)) for answer in answers.values())
    if failed:
        names = ", ".join(map(shown, failed))
        raise CtlError(f"{len(failed)} of {len(answers)} VMs not reloaded: {names}")


def _changes(name: str, link: Link) -> dict[str, Any]:
    """Return one daemon's answer in the form of --json."""
    try:
        answer = link.take()[-1]
        if not isinstance(answer, dict) or "changed" not in answer:
            raise model.unexpected("config-reload")
        return {"id": name, "changed": [*model.words(answer, "changed")]}
    except CtlError as error:
        return {"id": name, "error": str(error)}
    finally:
        link.close()


def _line(answer: dict[str, Any]) -> str:
    name = shown(answer["id"])
    if "error" in answer:
        return f"{name}: {answer['error']}"
    return f"{name}: {told_changes(answer['changed'])}"


def told_changes(changed: Sequence[str]) -> str:
    """Return what a reload changed."""
    return f"changed {', '.join(changed)}" if changed else "nothing changed"
