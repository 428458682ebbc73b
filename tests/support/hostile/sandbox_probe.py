"""What a VM's process that its guest has taken over would try, from inside its unit or outside.

Run in the place of the daemon, by the system's own Python, it is told by its control socket what to
try; with arguments it tries that and prints the result. An attempt's result is "done", what it
found, or the name of the error. Nothing that it could do does harm. Standard library only: it runs
without the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

DONE = "done"
TOLD = "/opt/sandbox_probe.py"
"""Where it is copied to, inside."""
_PTRACE_SEIZE = 0x4206
_PIDFD_GETFD = 438
_MANY = 253
_libc = ctypes.CDLL(None, use_errno=True)
_in_flight: list[socket.socket] = []


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "libc")


def kill(pid: str) -> None:
    os.kill(int(pid), signal.SIGCONT)


def pidfd(pid: str) -> None:
    signal.pidfd_send_signal(os.pidfd_open(int(pid)), signal.SIGCONT)


def ptrace(pid: str) -> None:
    _checked(_libc.ptrace(_PTRACE_SEIZE, int(pid), None, None))


def prlimit(pid: str) -> None:
    limits = resource.prlimit(int(pid), resource.RLIMIT_CPU)
    resource.prlimit(int(pid), resource.RLIMIT_CPU, limits)


def peek(pid: str, address: str) -> None:
    """No system call filter stands before process_vm_readv."""
    here = ctypes.create_string_buffer(1)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(here), 1)
    remote = (ctypes.c_size_t * 2)(int(address, 16), 1)
    _checked(_libc.process_vm_readv(int(pid), local, 1, remote, 1, 0))


def memory(pid: str) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))


def record(pid: str) -> None:
    """Write to a memory file that it holds."""
    folder = Path(f"/proc/{pid}/fd")
    for entry in folder.iterdir():
        if os.readlink(entry).startswith("/memfd:"):
            fd = os.open(entry, os.O_RDWR)
            os.pwrite(fd, os.pread(fd, 1, 0), 0)
            return
    raise FileNotFoundError(errno.ENOENT, "no memory file")


def command_line(pid: str) -> None:
    Path(f"/proc/{pid}/cmdline").read_bytes()


def read(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def copy_descriptor(pid: str) -> None:
    """Take the process's descriptor 0 (pidfd_getfd)."""
    taken = _libc.syscall(_PIDFD_GETFD, os.pidfd_open(int(pid)), 0, 0)
    _checked(taken)
    os.close(taken)


def examine(question: str) -> str:
    """The examiner's answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect("/run/vhost-balloon-examiner/access/socket")
        sock.sendall(question.encode() + b"\n")
        return sock.recv(300).decode().rstrip()


def crowd_examiner(count: str) -> str:
    """Connect to the examiner so often, ask on each connection without end, and read nothing; how
    often it took a question."""
    asked = 0
    while len(_in_flight) < int(count):
        _in_flight.append(socket.socket(socket.AF_UNIX))
        _in_flight[-1].setblocking(False)
        _in_flight[-1].connect("/run/vhost-balloon-examiner/access/socket")
        with contextlib.suppress(OSError):
            while True:
                _in_flight[-1].send(f"{os.getpid()} 1\n".encode())
                asked += 1
    return str(asked)


def connect(path: str) -> None:
    """To a Unix socket; "@" begins an abstract name."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + path[1:] if path[0] == "@" else path)


def connect_tcp(port: str) -> None:
    with socket.socket(socket.AF_INET) as sock:
        sock.connect(("127.0.0.1", int(port)))


def replace(path: str) -> None:
    """Put a socket of our own in a path's place."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{path}.new")
        os.rename(f"{path}.new", path)


def write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.unlink(path)


def write_anywhere() -> str:
    """In whatever is mounted, and in the folders there; where that succeeded."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    # Message queues are of an IPC namespace of its own, and few.
    others = ("/proc", "/dev/mqueue")
    folders = [path for path in mounts if os.path.isdir(path)]
    for top in list(folders):
        with contextlib.suppress(OSError):
            folders += [entry.path for entry in os.scandir(top) if entry.is_dir()]
    folders = [path for path in folders if not path.startswith(others)]
    for folder in folders:
        with contextlib.suppress(OSError):
            write(f"{folder}/probe")
            return folder
    raise OSError(errno.EROFS, "nowhere")


def fill_flight() -> None:
    """Have descriptors in flight until no more are taken."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    _in_flight.extend(ends)
    ends[0].setblocking(False)
    while True:
        socket.send_fds(ends[0], [b"x"], [0] * _MANY)


def end_flight() -> None:
    while _in_flight:
        _in_flight.pop().close()


def flood(seconds: str) -> str:
    """Send the service manager and the journal what they take; how many messages that were."""
    paths = (os.environ["NOTIFY_SOCKET"], "/run/systemd/journal/socket")
    end, count = time.monotonic() + float(seconds), 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        while time.monotonic() < end:
            for path, message in zip(paths, (b"STATUS=busy", b"MESSAGE=busy\n"), strict=True):
                with contextlib.suppress(BlockingIOError):
                    sock.sendto(message, socket.MSG_DONTWAIT, path)
                    count += 1
    return str(count)


def pass_one() -> None:
    """Pass one descriptor."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        socket.send_fds(one, [b"x"], [0])


_ATTEMPTS = {
    attempt.__name__: attempt
    for attempt in (
        *(kill, pidfd, ptrace, prlimit, peek, memory, record, command_line, copy_descriptor, read),
        *(examine, crowd_examiner),
        *(connect, connect_tcp, replace, write, write_anywhere),
        *(fill_flight, end_flight, pass_one, flood),
    )
}


def tried(name: str, *arguments: str) -> str:
    try:
        return _ATTEMPTS[name](*arguments) or DONE
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _serve() -> None:
    number = os.environ["LISTEN_FDNAMES"].split(":").index("control")
    listener = socket.socket(fileno=3 + number)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(os.environ["NOTIFY_SOCKET"])
        manager.send(b"READY=1")
    while True:
        client, _ = listener.accept()
        with client, contextlib.suppress(BrokenPipeError):
            order = json.loads(client.makefile().readline())
            client.sendall(tried(*order).encode())


if __name__ == "__main__":
    if sys.argv[1:]:
        print(tried(*sys.argv[1:]))
    else:
        _serve()
