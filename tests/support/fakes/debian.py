"""A fake Debian archive in a folder, with fake tools, as far as the rig uses them.

`python -m tests.support.fakes.debian NAME...` provisions the named trees with the tools on PATH.
KILL_AT=N in the environment kills the caller of the tools at its Nth call.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.rig.provisioning import packages
from tests.rig.provisioning.packages import Tree
from tests.rig.provisioning.sources import Archive

DEPENDS: Final[Mapping[str, Sequence[str]]] = {
    "libc": (),
    "libz": ("libc",),
    "emulator": ("libz", "libc"),
    "init": ("shell", "libc"),
    "shell": ("libz",),
    "reader": ("libz", "libc"),
    "server": ("libc",),
    "kernel": ("image-1", "tools"),
    "image-1": (),
    "image-2": (),
    "tools": (),
}
BACKPORTS: Final = {"kernel": ("image-2", "tools")}
"""What a package depends on there, where that is something else."""

EMULATOR: Final = Tree("emulator", ("emulator",), dependencies=True, must_have=("usr/libc",))
INIT: Final = Tree("init", ("init", "libz"), dependencies=True, must_have=("usr/shell",))
READER: Final = Tree("reader", ("reader", "libz", "libc"), must_have=("usr/libz", "usr/libc"))
SERVER: Final = Tree("server", ("server", "libc"), keep=("usr/server", "usr/lib*"))
KERNEL: Final = Tree("kernel", ("kernel",), meta="image-", must_have=("usr/image-1",))
TREES: Final = (EMULATOR, INIT, READER, SERVER, KERNEL)
HOLDS: Final = {
    EMULATOR: {"emulator", "libz", "libc"},
    INIT: {"init", "shell", "libz", "libc"},
    READER: {"reader", "libz", "libc"},
    SERVER: {"server", "libc"},
    KERNEL: {"image-1"},
}
"""The packages that each tree consists of; a package NAME has one file, usr/NAME."""

PACKAGE_SIZE: Final = 200_000
_TOOLS: Final = ("apt-cache", "apt-config", "apt-get", "dpkg-deb")
_SCRIPT: Final = r"""#!/bin/sh
set -e
archive=ARCHIVE tool=${0##*/}
echo "$tool $*" >>"$archive/calls"
if [ "$(wc -l <"$archive/calls")" = "$KILL_AT" ]; then
    kill -KILL $PPID
    exit 1
fi
own=$(dirname "${APT_CONFIG:-/}")

depends() {
    if [ -e "$archive/$1.backports" ] && grep -q "\<$1\>" "$own/etc/preferences"; then
        cat "$archive/$1.backports"
    else
        cat "$archive/$1"
    fi
}
fetch() { # FOLDER PACKAGE: as apt does, not what is there already
    [ -e "$archive/$2" ] || { echo "E: Unable to locate package $2" >&2; exit 100; }
    [ -e "$archive/$2.forgotten" ] || truncate -s SIZE "$1/$2_1%3a2_amd64.deb"
}
fetch_all() { # FOLDER PACKAGE...: with what they depend on
    folder=$1
    shift
    for package; do
        [ ! -e "$folder/${package}_1%3a2_amd64.deb" ] || continue
        fetch "$folder" "$package"
        fetch_all "$folder" $(depends "$package")
    done
}

case "$tool $1" in
"apt-get download")
    shift
    for package; do fetch . "$package"; done
    ;;
"apt-get install")
    folder=$own/cache/archives
    while [ $# -gt 0 ]; do
        case $1 in
        install | --*) ;;
        -o) folder=${2#Dir::Cache::archives=} && shift ;;
        *) break ;;
        esac
        shift
    done
    fetch_all "$folder" "$@"
    ;;
"apt-cache show")
    echo "Package: $3"
    echo "Depends: $(depends "$3" | sed 's/ /, /g')"
    ;;
"dpkg-deb --extract")
    name=${2##*/}
    [ ! -e "$archive/${name%%_*}.broken" ] || { echo "dpkg-deb: error: broken" >&2; exit 2; }
    mkdir -p "$3/usr"
    echo >"$3/usr/${name%%_*}"
    ;;
esac
"""


class FakeDebian:
    """The archive and its tools.

    Attributes:
        environment: variables that have the rig use it.
    """

    def __init__(self, folder: Path) -> None:
        self._archive = folder / "archive"
        self._archive.mkdir()
        for name, depends in DEPENDS.items():
            (self._archive / name).write_text(" ".join(depends))
        for name, depends in BACKPORTS.items():
            (self._archive / f"{name}.backports").write_text(" ".join(depends))
        tools = folder / "bin"
        tools.mkdir()
        script = _SCRIPT.replace("ARCHIVE", str(self._archive)).replace("SIZE", str(PACKAGE_SIZE))
        for name in _TOOLS:
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "VHOST_BALLOON_RIG": str(folder / "cache"),
        }

    def calls(self) -> list[str]:
        """The tools' command lines since the last time."""
        calls = self._archive / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines

    def set(self, package: str, state: str, on: bool = True) -> None:
        """Have apt not fetch it without a word ("forgotten"), or dpkg-deb fail on it ("broken")."""
        mark = self._archive / f"{package}.{state}"
        mark.touch() if on else mark.unlink()


def archives(etc_apt: Path) -> list[Archive]:
    """In the place of debian_archives()."""
    return [Archive("http://archive.test/debian", "trixie", "")]


if __name__ == "__main__":
    vars(packages)["debian_archives"] = archives
    packages.provision(tuple(tree for tree in TREES if tree.name in sys.argv[1:]))
