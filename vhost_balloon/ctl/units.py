"""install-units: installs systemd's units, groups and folder, and QEMU's back-end description."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

from vhost_balloon.ctl import shipped
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.ctl.output import Output
from vhost_balloon.printable import printable

FOLDERS: Final[dict[str, str]] = {
    "vhost-balloon@.service": "lib/systemd/system",
    "vhost-balloon@.socket": "lib/systemd/system",
    "vhost-balloon-control@.socket": "lib/systemd/system",
    "vhost-balloon-examiner.service": "lib/systemd/system",
    "vhost-balloon-examiner.socket": "lib/systemd/system",
    "vhost-balloon-hub.service": "lib/systemd/system",
    "vhost-balloon.sysusers": "lib/sysusers.d",
    "vhost-balloon.tmpfiles": "lib/tmpfiles.d",
    "50-vhost-balloon.json": "share/qemu/vhost-user",
}
"""Shipped files, and their folders below the prefix."""

FORMER: Final[dict[str, str]] = {
    "vhost-balloon.service": "lib/systemd/system",
    "vhost-balloon.socket": "lib/systemd/system",
    "vhost-balloon-vm@.socket": "lib/systemd/system",
}
"""Files of versions that had one daemon for many VMs; they are only removed."""

_DAEMON: Final = "vhost-balloon"
_PLACEHOLDER: Final = "@BINARY@"
_HIDDEN: Final = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")
"""Folders hidden from the services (ProtectHome=, PrivateTmp=)."""
_PLAIN: Final = re.compile(r"/[A-Za-z0-9._/+@:-]+")


def run(options: argparse.Namespace, output: Output) -> None:
    """Install, list or remove the files. Raises CtlError."""
    targets = {name: _target(options, name) for name in FOLDERS}
    if options.remove:
        known = [*targets.values(), *(_target(options, name) for name in FORMER)]
        done = [target for target in known if _remove(target, dry_run=options.dry_run)]
    else:
        binary = _binary(options.binary)
        texts = {
            name: shipped.read("units", name).replace(_PLACEHOLDER, binary) for name in targets
        }
        for name, target in targets.items():
            if not options.dry_run:
                _write(target, texts[name])
        done = list(targets.values())
    if options.json:
        output.json([str(target) for target in done])
    else:
        output.lines(printable(str(target)) for target in done)


def _target(options: argparse.Namespace, name: str) -> Path:
    # sysusers.d and tmpfiles.d read only *.conf.
    installed = re.sub(r"\.(sysusers|tmpfiles)$", ".conf", name)
    prefix = Path("/", options.prefix).relative_to("/")
    folder = (FOLDERS | FORMER)[name]
    return Path(os.path.abspath(options.root), prefix, folder, installed)


def _binary(given: str | None) -> str:
    """Return the daemon's path. Raises CtlError if a unit cannot name it or a service see it."""
    path = os.path.abspath(given) if given else _installed()
    if not _PLAIN.fullmatch(path):
        raise CtlError(f"{path} has characters that a unit cannot name: install it elsewhere")
    if path.startswith(_HIDDEN):
        raise CtlError(f"services cannot see {path}: install it below /opt or /usr, for example")
    return path


def _installed() -> str:
    beside = Path(os.path.abspath(sys.argv[0])).with_name(_DAEMON)
    for path in (beside, Path(sysconfig.get_path("scripts")) / _DAEMON):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    found = shutil.which(_DAEMON)
    if found is None:
        raise CtlError(f"no {_DAEMON} beside this program or in $PATH: use --binary=PATH")
    return os.path.abspath(found)


def _write(target: Path, text: str) -> None:
    """Write a file atomically."""
    new = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.write_text(text, "utf-8")
            new.chmod(0o644)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise CtlError(f"cannot write {target}: {error.strerror}") from None


def _remove(target: Path, *, dry_run: bool) -> bool:
    """Remove a file unless dry_run. Return whether it existed."""
    try:
        if dry_run:
            target.lstat()
        else:
            target.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CtlError(f"cannot remove {target}: {error.strerror}") from None
    return True
