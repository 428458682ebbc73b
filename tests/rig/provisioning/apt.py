"""A private apt: its own state and cache, an empty dpkg status, no root, signatures checked.

The host's apt state is neither read nor changed. Only the way to reach the host's archive is
taken over: the URI, proxies and other Acquire options, credentials and keyrings.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig.errors import RigUnavailable
from tests.rig.provisioning.sources import Archive

SUITES: Final = ("trixie", "trixie-backports")
_KEYRING: Final = "usr/share/keyrings/debian-archive-keyring.gpg"
_UNTRUSTED: Final = re.compile(r"NO_PUBKEY|not signed|[Mm]issing key|couldn't be verified")
# Settings that would weaken the checks or fetch unused indexes.
_NOT_TAKEN_OVER: Final = re.compile(
    r"Acquire::(IndexTargets|Changelogs|Languages|Allow\w+|GzipIndexes|CompressionTypes)\b"
)


@dataclass
class PrivateApt:
    """apt-get and apt-cache bound to their own folder.

    Attributes:
        root: the folder; everything in it may be deleted between uses.
        etc_apt: the host's apt configuration.
    """

    root: Path
    etc_apt: Path = Path("/etc/apt")

    def open(self, archive: Archive) -> None:
        """Fetch the indexes of SUITES from archive.

        Raises:
            RigUnavailable: it lacks them, or has them without a signature we can trust.
        """
        self._configure()
        keyrings = _signed_by(archive.signed_by)
        try:
            self._update(archive.uri, SUITES, keyrings)
        except RigUnavailable as error:
            if not _UNTRUSTED.search(error.reason):
                raise
            # The host's keyring is older than trixie; its own suite has a newer one, signed
            # with keys that the host already trusts.
            self._update(archive.uri, (archive.suite,), keyrings)
            self._update(archive.uri, SUITES, str(self._newer_keyring()))

    def prefer_backports(self, patterns: Sequence[str]) -> None:
        """Take only the packages matching patterns from backports."""
        (self.root / "etc/preferences").write_text(
            f"Package: {' '.join(patterns)}\nPin: release n={SUITES[1]}\nPin-Priority: 990\n"
            if patterns
            else ""
        )

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Download packages and all their dependencies, without recommendations."""
        folder = self._empty_folder()
        (folder / "partial").mkdir()
        self._run(
            [
                *("apt-get", "install", "--yes", "--download-only", "--no-install-recommends"),
                *("-o", f"Dir::Cache::archives={folder}"),
            ],
            packages,
        )
        return sorted(folder.glob("*.deb"))

    def download_alone(self, packages: Sequence[str]) -> list[Path]:
        """Download packages without their dependencies."""
        folder = self._empty_folder()
        self._run(["apt-get", "download"], packages, cwd=folder)
        return sorted(folder.glob("*.deb"))

    def dependencies(self, package: str) -> list[str]:
        """Names of the direct dependencies of package, first alternatives only."""
        shown = self._run(["apt-cache", "show", "--no-all-versions"], [package])
        match = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        words = match[1].split(",") if match else []
        return [word.split("|")[0].split("(")[0].strip() for word in words]

    def _empty_folder(self) -> Path:
        """Make a folder for one download. apt does not fetch existing files again, so in a shared
        folder it would be unclear which download a package belongs to."""
        return Path(tempfile.mkdtemp(prefix="packages-", dir=self.root))

    def _newer_keyring(self) -> Path:
        (package,) = self.download_alone(["debian-archive-keyring"])
        unpack(package, self.root / "keyring")
        return self.root / "keyring" / _KEYRING

    def _update(self, uri: str, suites: Sequence[str], signed_by: str) -> None:
        (self.root / "etc/sources.list.d/rig.sources").write_text(
            f"Types: deb\nURIs: {uri}\nSuites: {' '.join(suites)}\n"
            f"Components: main\nArchitectures: amd64\n"
            + (f"Signed-By: {signed_by}\n" if signed_by else "")
        )
        self._run(["apt-get", "update", "-o", "APT::Update::Error-Mode=any"], [])

    def _configure(self) -> None:
        for folder in ("etc/sources.list.d", "etc/empty", "state/lists/partial", "cache", "log"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "state/status").touch()
        (self.root / "apt.conf").write_text(
            _CONFIGURATION.format(
                acquire=_host_acquire_options(), root=self.root, host=self.etc_apt
            )
        )

    def _run(self, command: Sequence[str], packages: Sequence[str], cwd: Path | None = None) -> str:
        environment = os.environ | {"APT_CONFIG": str(self.root / "apt.conf"), "LC_ALL": "C"}
        environment["DEBIAN_FRONTEND"] = "noninteractive"
        try:
            done = subprocess.run(
                [*command, *packages],
                cwd=cwd or self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=900,
            )
        except FileNotFoundError as error:
            raise RigUnavailable(f"{command[0]} is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise RigUnavailable(f"{' '.join(command)} took over 15 minutes") from error
        if done.returncode != 0:
            raise RigUnavailable(f"{' '.join(command)} failed: {_gist(done.stderr)}")
        return done.stdout


def unpack(package: Path, tree: Path) -> None:
    """Unpack one .deb into tree (dpkg-deb has every compression it needs built in)."""
    tree.mkdir(parents=True, exist_ok=True)
    command = ["dpkg-deb", "--extract", str(package), str(tree)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        raise RigUnavailable(f"unpacking {package.name} took over 5 minutes") from error
    if done.returncode != 0:
        raise RigUnavailable(f"unpacking {package.name} failed: {_gist(done.stderr)}")


def _gist(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith(("E:", "W:", "dpkg-deb:"))]
    return " ".join(lines or stderr.splitlines()[-3:])


def _signed_by(host_value: str) -> str:
    """The host's choice, or Debian's keyring where the host names none."""
    default = Path("/") / _KEYRING
    return host_value or (str(default) if default.exists() else "")


def _host_acquire_options() -> str:
    """Proxies, retries and the like, as apt-config prints them: valid configuration again."""
    try:
        dump = subprocess.run(
            ["apt-config", "dump", "Acquire"], capture_output=True, text=True, timeout=30
        )
    except FileNotFoundError as error:
        raise RigUnavailable("apt-config is not installed (not a Debian host?)") from error
    lines = [line for line in dump.stdout.splitlines() if not _NOT_TAKEN_OVER.match(line)]
    return "\n".join(lines)


# Read by apt before anything else (APT_CONFIG): it keeps the host's own files, with their hooks,
# out. Options on trust come last so that nothing taken over from the host can loosen them.
_CONFIGURATION: Final = """\
{acquire}
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
Binary::apt-get::APT::Keep-Downloaded-Packages "true";
APT::Keep-Downloaded-Packages "true";
Dir::Etc "{root}/etc";
Dir::Etc::main "empty.conf";
Dir::Etc::parts "empty";
Dir::Etc::sourcelist "sources.list";
Dir::Etc::sourceparts "sources.list.d";
Dir::Etc::preferences "preferences";
Dir::Etc::preferencesparts "empty";
Dir::Etc::netrc "{host}/auth.conf";
Dir::Etc::netrcparts "{host}/auth.conf.d";
Dir::Etc::trusted "{host}/trusted.gpg";
Dir::Etc::trustedparts "{host}/trusted.gpg.d";
Dir::State "{root}/state";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Log "{root}/log";
"""
