"""Child processes that never outlive us, and facts about them from /proc."""

from __future__ import annotations

import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

# PR_SET_PDEATHSIG fires when the *thread* that forked ends, so children are forked by one thread
# that lives as long as the process: tests may start guests from short-lived worker threads.
OWN_FORKER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rig-forker")


class Closing(ABC):
    """A context manager that is closed at the end."""

    @abstractmethod
    def close(self) -> None:
        """End it and delete its remains."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class Started(Closing):
    """A Closing that starts on entry. close() may be called twice, and before the start."""

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it is usable."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self


def spawn(
    arguments: Sequence[str | Path],
    *,
    output: IO[bytes],
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    forker: ThreadPoolExecutor = OWN_FORKER,
) -> subprocess.Popen[bytes]:
    """Start a program that is killed when this process ends, however it ends.

    Args:
        output: receives its stdout and stderr.
        environment: variables to add to ours.
        forker: a thread that outlives the process, if not our own.
    """
    command = ["setpriv", "--pdeathsig", "KILL", "--", *map(str, arguments)]
    return forker.submit(
        subprocess.Popen,
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=os.environ | dict(environment or {}),
        pass_fds=tuple(pass_fds),
    ).result()


def ended(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Wait up to timeout seconds for the process to end."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL and reap."""
    process.kill()
    process.wait(30)


def rss(pid: int) -> int:
    """Resident set size in bytes, shared pages included."""
    return _kilobytes(pid, "status", "VmRSS")


def pss(pid: int) -> int:
    """Proportional set size in bytes: shared pages divided by their sharers."""
    return _kilobytes(pid, "smaps_rollup", "Pss")


def fds(pid: int) -> dict[int, str]:
    """Open descriptors: number -> what it refers to, as readlink shows it."""
    links: dict[int, str] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:  # closed since the folder was listed
            continue
    return links


def epoll_entries(pid: int) -> int:
    """The number of descriptors that a process waits for, in all its epoll objects."""
    found = 0
    for number, link in fds(pid).items():
        if link == "anon_inode:[eventpoll]":
            with suppress(FileNotFoundError):  # closed since
                found += Path(f"/proc/{pid}/fdinfo/{number}").read_text().count("tfd:")
    return found


def mappings(pid: int) -> list[str]:
    """Lines of /proc/PID/maps."""
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


def _kilobytes(pid: int, file: str, key: str) -> int:
    text = Path(f"/proc/{pid}/{file}").read_text()
    match = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"/proc/{pid}/{file} has no {key}")
    return int(match[1]) * 1024


def text_tail(path: Path, size: int = 3000) -> str:
    """The end of a log file, "" if there is none."""
    try:
        return path.read_bytes()[-size:].decode(errors="replace")
    except FileNotFoundError:
        return ""
