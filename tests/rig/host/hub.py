"""The hub as a subprocess, with the policy on."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.rig.daemon import Daemon


class Hub(Daemon):
    """One `python -m vhost_balloon.hub`; see Daemon. It may be started again after kill().

    Args:
        vms: folder of the VMs' control sockets.
        settings: text of its configuration file.

    Attributes:
        control: path of its control socket.
    """

    def __init__(self, vms: Path, settings: str) -> None:
        super().__init__(name="hub")
        self._vms = vms
        self._settings = self.folder / "hub.toml"
        self._settings.write_text(settings)

    def command(self) -> list[str]:
        """The command line. Its run folder is its own folder."""
        return [
            *(sys.executable, "-m", "vhost_balloon.hub"),
            f"--folder={self._vms}",
            f"--run-folder={self.folder}",
            f"--config={self._settings}",
            "--metrics-address=127.0.0.1:0",
        ]
