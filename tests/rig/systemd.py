"""Real systemd as PID 1 in its own namespaces, in a temporary copy of a Debian tree. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig import namespace, process
from tests.rig.errors import RigUnavailable, SystemdError
from tests.rig.provisioning.packages import SYSTEMD
from tests.rig.provisioning.wheel import build_wheel
from tests.rig.qmp import QMPClient
from tests.rig.waiting import wait_until

BOOT_SECONDS: Final = 60.0
VENV: Final = "/opt/vhost-balloon"
OPTIONS: Final = "/etc/default/vhost-balloon"


@dataclass(frozen=True)
class Instance:
    """The names of a VM's units and sockets."""

    vm: str

    @property
    def service(self) -> str:
        return f"vhost-balloon@{self.vm}.service"

    @property
    def socket(self) -> str:
        return f"vhost-balloon@{self.vm}.socket"

    @property
    def control_socket(self) -> str:
        return f"vhost-balloon-control@{self.vm}.socket"

    @property
    def path(self) -> str:
        """The socket its front end connects to."""
        return f"/run/vhost-balloon/{self.vm}.sock"

    @property
    def control(self) -> str:
        return f"/run/vhost-balloon/{self.vm}.control"

    @property
    def units(self) -> tuple[str, str]:
        """The units to stop together so that nothing remains."""
        return self.socket, self.service


WEB1: Final = Instance("web1")
SERVICE: Final = WEB1.service
CONTROL: Final = WEB1.control
HUB: Final = "vhost-balloon-hub.service"
EXAMINER: Final = "vhost-balloon-examiner.service"
EXAMINER_SOCKET: Final = "vhost-balloon-examiner.socket"

# There is no hub yet.
_STAND_IN_HUB: Final = f"""#!{VENV}/bin/python
import http.server, os, socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.connect(os.environ["NOTIFY_SOCKET"])
    notify.send(b"READY=1\\nWATCHDOG_USEC=0")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        for name in sorted(os.listdir("/run/vhost-balloon")):
            if name.endswith(".control"):
                with socket.socket(socket.AF_UNIX) as sock:
                    up = 1 - bool(sock.connect_ex(f"/run/vhost-balloon/{{name}}"))
                line = f'vhost_balloon_up{{{{vm="{{name[:-8]}}"}}}} {{up}}\\n'
                self.wfile.write(line.encode())
http.server.HTTPServer(("127.0.0.1", 9750), Handler).serve_forever()
"""

_BOOT: Final = Path(__file__).with_name("systemd_boot.sh")
_ENVIRONMENT: Final = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
# The host may lack the mount through which its cgroups would be reached.
_REMOVE_CGROUP: Final = (
    'mount -t cgroup2 cgroup2 "$1" && find "$1/$2" -depth -type d -exec rmdir {} +'
)


class SystemdHost(process.Started):
    """One systemd system; a context manager that leaves nothing behind.

    Its processes are visible here under other process ids, its files at path().

    Attributes:
        folder: on the host: systemd's own output, and files of the tests.
        forker: for Guest or spawn(): runs the process in the system's PID namespace, where the
            daemon can see it, and in its network, but with the host's files.
    """

    forker: ThreadPoolExecutor

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rig-systemd-"))
        self._cgroup = f"{_own_cgroup()}/{self.folder.name}".strip("/")
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def start(self, timeout: float = BOOT_SECONDS) -> None:
        """Boot and wait until all boot jobs are done.

        Raises:
            RigUnavailable: this machine does not allow namespaces.
            SystemdError: it did not boot within timeout seconds.
        """
        if os.geteuid() != 0:
            raise RigUnavailable("systemd in namespaces of its own takes root")
        (self.folder / "work").mkdir()
        own_mounts = ("unshare", "--mount", "--propagation", "private")
        command = (*own_mounts, "sh", _BOOT, SYSTEMD.folder, self.folder / "work", self._cgroup)
        with (self.folder / "systemd.log").open("wb") as log:
            self._process = process.spawn(command, output=log)
        booting = self._process

        def booted() -> bool:
            if booting.poll() is not None:
                raise RigUnavailable(f"systemd does not run here: {self._log()}")
            return self._booted()

        late = f"no systemd within {timeout} s"
        wait_until(booted, timeout, lambda: SystemdError(f"{late}: {self._log()}"), pause=0.05)
        state = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
        if state != "running":
            raise SystemdError(f"it is {state}:\n{self.systemctl('--failed')}{self._log()}")
        self.forker = namespace.forker(self._init)

    def close(self) -> None:
        """End it with all its processes; may be called twice."""
        if self._process is None:
            return
        if self._init:
            # Once PID 1 has been reaped, no process of its namespace is left.
            os.kill(self._init, signal.SIGKILL)
        if not process.ended(self._process, 10):
            process.kill(self._process)
        self._process = None
        if "forker" in self.__dict__:
            self.forker.shutdown()
        mount = self.folder / "work"
        _run("unshare", "--mount", "sh", "-ec", _REMOVE_CGROUP, "sh", mount, self._cgroup)
        shutil.rmtree(self.folder)

    # Commands and files

    def run(
        self, *command: str | Path, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside; stdout includes its stderr.

        Raises:
            SystemdError: check is true and the command failed.
        """
        enter = ["nsenter", f"--target={self._init}", "--all", "--root", "--wd"]
        done = _run(*enter, *_ENVIRONMENT, *command, timeout=timeout)
        if check and done.returncode != 0:
            said = f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}"
            raise SystemdError(said + self._log())
        return done

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Run systemctl and return its output."""
        return self.run("systemctl", "--no-pager", "--full", *arguments, check=check).stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def journal(self, unit: str = SERVICE) -> str:
        """The complete log so far of a unit, or of all that match a pattern, including systemd's
        own lines about it."""
        self.run("journalctl", "--sync")
        command = ("journalctl", "--no-pager", "--output=short-precise", "-u", unit)
        # A pattern that matches nothing yet is an error to journalctl.
        return self.run(*command, check="*" not in unit).stdout

    def wait_logged(self, text: str, unit: str = SERVICE, timeout: float = 30) -> str:
        """Wait until a unit's log contains text; return the whole log."""
        log = ""

        def logged() -> bool:
            nonlocal log
            log = self.journal(unit)
            return text in log

        late = f"no {text!r} within {timeout} s"
        wait_until(logged, timeout, lambda: SystemdError(f"{late}\n{log}"))
        return log

    def path(self, inside: str) -> Path:
        """The host's path of a file of the system; works for connecting to sockets too."""
        return Path(f"/proc/{self._init}/root{inside}")

    def write(self, inside: str, text: str) -> None:
        """Write a file, creating its folders."""
        self.run("mkdir", "-p", os.path.dirname(inside))
        self.path(inside).write_text(text)

    def drop_in(self, unit: str, text: str, name: str = "test") -> None:
        """Add a drop-in to a unit and reload systemd; "" removes it."""
        path = f"/run/systemd/system/{unit}.d/{name}.conf"
        if text:
            self.write(path, text)
        else:
            self.path(path).unlink()
        self.systemctl("daemon-reload")

    @contextlib.contextmanager
    def without(self, *units: str) -> Iterator[None]:
        """Stop units, and let nothing start them meanwhile."""
        self.systemctl("mask", "--runtime", "--now", *units)
        try:
            yield
        finally:
            self.systemctl("unmask", "--runtime", *units)

    # The daemon

    @contextlib.contextmanager
    def options(self, *options: str) -> Iterator[None]:
        """Give these options to daemons that start meanwhile, as README says.

        With --discard=always, no test has to wait for the examiner: front ends here run as a
        different user from the daemon.
        """
        self.write(OPTIONS, f'VHOST_BALLOON_OPTIONS="{" ".join(options)}"\n')
        try:
            yield
        finally:
            self.path(OPTIONS).unlink()

    def install(self, wheel: Path | None = None) -> None:
        """Install the daemon as README says; a second call replaces the first build."""
        with tempfile.TemporaryDirectory() as folder:
            built = wheel or build_wheel(Path(folder))
            shutil.copy(built, self.path("/root"))
        if not self.path(VENV).exists():
            # The dependencies come from Debian; there is no network to fetch them.
            self.run("python3", "-m", "venv", "--system-site-packages", VENV)
        options = ("--no-index", "--no-deps", "--force-reinstall", "--disable-pip-version-check")
        self.run(f"{VENV}/bin/pip", "install", *options, f"/root/{built.name}")
        # Compiles modules as Debian's maintainer scripts would: services cannot write there.
        self.run(f"{VENV}/bin/python", "-c", "import prometheus_client, vhost_balloon.__main__")
        self.run(f"{VENV}/bin/vhost-balloon", "--version")
        self.run(f"{VENV}/bin/vhost-balloonctl", "install-units")
        if not self.path(f"{VENV}/bin/vhost-balloon-hub").exists():
            self.write(f"{VENV}/bin/vhost-balloon-hub", _STAND_IN_HUB)
            self.path(f"{VENV}/bin/vhost-balloon-hub").chmod(0o755)
        self.run("systemd-sysusers")
        self.run("systemd-tmpfiles", "--create")
        self.systemctl("daemon-reload")

    def daemon_pid(self, unit: str = SERVICE) -> int:
        """The daemon's process id on the host. Raises ProcessLookupError if it does not run."""
        return namespace.outside(int(self.show(unit, "MainPID")), self._init)

    def kill(self, number: signal.Signals = signal.SIGKILL, unit: str = SERVICE) -> int:
        """Send the daemon a signal; return its process id."""
        pid = self.daemon_pid(unit)
        os.kill(pid, number)
        return pid

    def wait_replaced(self, old: int, unit: str = SERVICE, timeout: float = 30) -> float:
        """Wait until the unit is active with a process other than old; return the seconds."""

        def replaced() -> bool:
            with contextlib.suppress(ProcessLookupError):
                return self.show(unit, "ActiveState") == "active" and self.daemon_pid(unit) != old
            return False

        def failure() -> SystemdError:
            return SystemdError(f"{unit} is not back\n{self.journal(unit)}")

        return wait_until(replaced, timeout, failure, pause=0.05)

    def stored(self, unit: str = SERVICE) -> list[str]:
        """Names of the descriptors in the unit's store."""
        lines = self.run("systemd-analyze", "fdstore", unit, check=False).stdout.splitlines()
        return [line.split()[0] for line in lines[1:] if line.strip()]

    def qmp(self, path: str = CONTROL) -> QMPClient:
        """A new connection to a control socket inside."""
        return QMPClient(self.path(path))

    # Internals

    def _booted(self) -> bool:
        """Whether systemd accepts commands."""
        assert self._process is not None
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in children:
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self._init = int(child)
            return bool(self._init) and self.path("/run/systemd/private").is_socket()
        except OSError:
            return False

    def _log(self) -> str:
        return "\n" + process.text_tail(self.folder / "systemd.log")


def _run(*command: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )


def _own_cgroup() -> str:
    """Our group in the unified hierarchy, which hybrid systems have beside the legacy ones."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next((line[3:] for line in lines if line.startswith("0::")), "/")
