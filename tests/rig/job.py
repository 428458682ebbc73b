"""Commands in the guest's background."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.rig.errors import CommandError, RigTimeout


class Job:
    """A command that runs in the guest's background."""

    def __init__(self, run: Callable[[str], str], command: str, prefix: str) -> None:
        self.command = command
        self._run = run
        self._prefix = prefix
        run(
            f"( ( {command}\n ) >{prefix}.out 2>&1; echo $? >{prefix}.new;"
            f" mv {prefix}.new {prefix}.status ) >/dev/null 2>&1 &"
        )

    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        text = self._run(f"cat {self._prefix}.status 2>/dev/null || true").strip()
        return int(text) if text else None

    def output(self) -> str:
        """What it has written so far."""
        return self._run(f"cat {self._prefix}.out")

    def wait(self, timeout: float) -> str:
        """Wait for its end and return its output.

        Raises:
            CommandError: it ended with a non-zero status.
            RigTimeout: it still runs after timeout seconds.
        """
        deadline = time.monotonic() + timeout
        while (status := self.status()) is None:
            if time.monotonic() > deadline:
                raise RigTimeout(f"{self.command!r} still runs; so far: {self.output()}")
            time.sleep(1)
        if status != 0:
            raise CommandError(self.command, status, self.output())
        return self.output()
