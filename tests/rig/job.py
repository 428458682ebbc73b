"""Background commands in the guest."""

from __future__ import annotations

from collections.abc import Callable

from tests.rig.errors import CommandError, RigTimeout
from tests.rig.waiting import wait_until


class Job:
    """A background command in the guest."""

    def __init__(self, run: Callable[[str], str], command: str, prefix: str) -> None:
        self.command = command
        self._run = run
        self._prefix = prefix
        run(
            f"( ( {command}\n ) >{prefix}.out 2>&1; echo $? >{prefix}.new;"
            f" mv {prefix}.new {prefix}.status ) >/dev/null 2>&1 &"
        )

    def status(self) -> int | None:
        """Exit status, None while it runs."""
        text = self._run(f"cat {self._prefix}.status 2>/dev/null || true").strip()
        return int(text) if text else None

    def output(self) -> str:
        """Output so far."""
        return self._run(f"cat {self._prefix}.out")

    def wait(self, timeout: float) -> str:
        """Wait for its end and return its output.

        Raises:
            CommandError: it ended with a non-zero status.
            RigTimeout: it still runs after timeout seconds.
        """
        wait_until(
            lambda: self.status() is not None,
            timeout,
            lambda: RigTimeout(f"{self.command!r} still runs; so far: {self.output()}"),
            pause=1,
        )
        if (status := self.status()) != 0:
            assert status is not None
            raise CommandError(self.command, status, self.output())
        return self.output()
