"""Descriptors that outlive this process: in the service manager's store, by short opaque names.

Theory of operation. systemd keeps what is sent to it with FDSTORE=1 and hands all of it to the
next process of the service; a name is all that it keeps with a descriptor. What each one is for
stands in the records of the VMs (vhost_balloon.record), which are stored themselves.

- Names are short, because all of them reach the next process in one environment string, of 128 KiB
  at most; they begin with a dot, so that they are no VM's name. A listening socket's ends with a
  note: what its file is (vhost_balloon.sockets).
- systemd silently ignores a descriptor whose open file it holds already. So every open file has
  one name here, however often it is kept.
- What the process before this one left, or what is about to be removed, is such an open file too:
  stored again under another name it would be ignored, and then removed under the old one.
- A removal is sent only after the record that names the descriptor was written anew: a Scope
  collects them until its owner says so. A process that dies in between leaves a descriptor that
  no record names; sweep() of the next one removes it.
"""

from __future__ import annotations

import os
import resource
import stat
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

import trio

from vhost_balloon.errors import FrontEndError, StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log import logger
from vhost_balloon.reply_pipe import ReplyPipe, make_pipe
from vhost_balloon.systemd import Notifier, fdstore, fdstore_remove

PREFIX: Final = "."
RECORD_PREFIX: Final = ".v"
PIPE_PREFIX: Final = ".w"
ARGUMENTS_PREFIX: Final = ".y"
"""Names of records, of the reply pipe and of the command line's, to be found without knowing
anything else."""
NOTE: Final = "@"
"""Begins the note at the end of a name."""

DESCRIPTORS_PER_VM: Final = 21
"""Front-end socket, back-end channel, memory, kick, call and err of 5 rings; record, listener."""

KEEP_LIMIT: Final = 1.0
DEAF_LIMIT: Final = 0.01
"""Seconds that a descriptor waits for the service manager, and while that does not read."""

SPARE: Final = 16
"""Descriptors that are left free for control clients and the like."""

_DIGITS: Final = "0123456789abcdefghijklmnopqrstu"  # others begin names
Key = tuple[object, ...]


class StoredFd(OwnedFd):
    """A descriptor that the store holds as well, for as long as this one is open."""

    __slots__ = ("_scope", "name")

    def __init__(self, fd: int, name: str, scope: Scope) -> None:
        super().__init__(fd)
        self.name = name
        self._scope = scope

    def close(self) -> None:
        if self._fd >= 0:
            self._scope.closed(self.name)
        super().close()


def name_of(fd: OwnedFd) -> str | None:
    """The name that the store knows a descriptor by, or None."""
    return fd.name if isinstance(fd, StoredFd) else None


class Store:
    """What the service manager holds for this process, and what it held for the one before.

    limit: how many descriptors it takes, 0 if there is no store. inherited: what the process
    before this one left, by name; without a store it is what it handed over when it re-executed.
    """

    def __init__(
        self,
        notifier: Notifier | None = None,
        limit: int = 0,
        inherited: Iterable[tuple[str, OwnedFd]] = (),
    ) -> None:
        self._notifier = notifier
        self._limit = limit if notifier else 0
        self._inherited = dict(inherited)
        self._adopted: dict[str, OwnedFd] = {}
        self._names: dict[Key, str] = {}
        self._keys: dict[str, Key] = {}
        self._uses: Counter[str] = Counter()
        self._removals: deque[str] = deque()
        self._lock = trio.Lock()
        self._removing = trio.Lock()
        self._work = trio.Event()
        self.pipe: ReplyPipe | None = None
        """Set by open_pipe(), if there is a store."""
        self.arguments: OwnedFd | None = None
        """Where the command line is kept (vhost_balloon.arguments), if there is a store."""
        self._is_deaf = False
        """The service manager did not take what it was told last."""
        self.leaving = False
        """This process ends, and the next one goes on with everything."""
        self._counter = max((_number(name) for name in self._inherited), default=0)
        if self.active:
            for name, fd in self._inherited.items():
                self._know(name, _identity(fd))

    @property
    def active(self) -> bool:
        """Whether anything outlives this process without its help."""
        return self._limit > 0

    @property
    def held(self) -> int:
        """Descriptors that the store holds now, those that are to be removed included."""
        return len(self._uses) + len(self._inherited) + len(self._removals)

    def room_for_vm(self, attached: int) -> bool:
        """Whether one more VM can be attached without passing a limit of descriptors.

        attached: how many are. Some may only have begun to send theirs: they are counted as whole.
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        promised = attached * DESCRIPTORS_PER_VM
        free = soft - max(_open_descriptors(), promised)
        room = self._limit - max(self.held, promised)
        stored = not self.active or room >= DESCRIPTORS_PER_VM
        return stored and free >= DESCRIPTORS_PER_VM + SPARE

    async def keep(
        self, fd: OwnedFd, scope: Scope, prefix: str = PREFIX, note: str = ""
    ) -> OwnedFd:
        """Store a descriptor; what is returned owns it from now on.

        note: ends its name, and tells the next process what no record does; NOTE and what follows.
        It is the same object, and not stored, if the service manager does not take it: a VM does
        not wait for that. Raises FrontEndError if the store is full; fd is then left to the caller.
        """
        if not self.active:
            return fd
        key = _identity(fd)
        async with self._lock:  # whoever brings the same file has to wait until it is stored
            name = self._names.get(key)
            if name is None:
                if self.held >= self._limit:
                    raise FrontEndError("the service manager's descriptor store is full")
                self._counter += 1
                name = prefix + _text(self._counter) + note
                if not await self._send(fdstore(name), fd):
                    return fd
                self._know(name, key)
            elif name in self._inherited:
                self._inherited.pop(name).close()
            elif name in self._removals:
                self._removals.remove(name)
            self._uses[name] += 1
        return StoredFd(fd.detach(), name, scope)

    async def _send(self, text: str, fd: OwnedFd) -> bool:
        """Tell the service manager of a descriptor; whether it was told in time."""
        assert self._notifier is not None
        with trio.move_on_after(DEAF_LIMIT if self._is_deaf else KEEP_LIMIT):
            await self._notifier.send(text, [fd])
            self._is_deaf = False
            return True
        if not self._is_deaf:
            logger.warning(
                "the service manager does not read: what is new of VMs would not survive a restart"
            )
        self._is_deaf = True
        return False

    async def open_pipe(self) -> None:
        """Have the reply pipe, if there is a store."""
        if self.active:
            scope = Scope(self)
            names = [name for name in self._inherited if name.startswith(PIPE_PREFIX)]
            try:
                fd = scope.adopt(names[0]) if names else await scope.keep(make_pipe(), PIPE_PREFIX)
                if name_of(fd) is not None:  # one that does not outlive this process tells nothing
                    self.pipe = ReplyPipe(fd)
            except (OSError, FrontEndError) as error:
                logger.warning("replies in flight would not survive a restart: %s", error)

    # What the process before this one left

    def records(self) -> list[str]:
        """Names of the records of VMs that were left."""
        return sorted(name for name in self._inherited if name.startswith(RECORD_PREFIX))

    def left(self) -> dict[str, OwnedFd]:
        """Everything that was left and that nobody has adopted yet, to look at."""
        return dict(self._inherited)

    def adopt(self, name: str, scope: Scope) -> OwnedFd:
        """Go on with a descriptor, as often as records name it. Raises StateError if it is lost."""
        fd = self._inherited.pop(name, None)
        if fd is None:
            known = self._adopted.get(name)
            if known is None or known.closed:
                raise StateError(f"descriptor {name} is lost")
            fd = OwnedFd(os.dup(known.fileno()))
        if not self.active:
            owned = fd
        else:
            self._know(name, _identity(fd))
            self._uses[name] += 1
            owned = StoredFd(fd.detach(), name, scope)
        self._adopted[name] = owned
        return owned

    def sweep(self) -> int:
        """Remove what was left and no record names; the number of descriptors."""
        self._adopted.clear()
        for name, fd in self._inherited.items():
            fd.close()
            self._remove(name)
        count = len(self._inherited)
        self._inherited.clear()
        return count

    # Removal

    def drop(self, name: str) -> None:
        """One use of a descriptor has ended; with the last one it is removed."""
        self._uses[name] -= 1
        if self._uses[name] <= 0:
            del self._uses[name]
            self._remove(name)

    def _remove(self, name: str) -> None:
        if self.active:
            self._removals.append(name)
            self._work.set()

    async def run(self) -> None:
        """Send removals, which nobody waits for."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            await self.settle()

    @property
    def removing(self) -> bool:
        """Whether removals have not been sent yet."""
        return bool(self._removals)

    async def settle(self) -> None:
        """Have sent all removals: a program that takes this one's place does not know of them."""
        async with self._removing:
            while self._removals:
                assert self._notifier is not None
                name = self._removals.popleft()
                self._names.pop(self._keys.pop(name), None)
                # Messages are sent in order: what is stored from here on comes behind this one.
                await self._notifier.send(fdstore_remove(name))

    def _know(self, name: str, key: Key) -> None:
        self._names[key], self._keys[name] = name, key


class Scope:
    """The stored descriptors of one owner.

    What it closes is removed once it says that no record names it any more. An owner that ends
    without saying so, because this process ends, leaves all to the next one.
    """

    def __init__(self, store: Store) -> None:
        self.store: Final = store
        self._closed: list[str] = []

    async def keep(self, fd: OwnedFd, prefix: str = PREFIX, note: str = "") -> OwnedFd:
        """See Store.keep()."""
        return await self.store.keep(fd, self, prefix, note)

    def adopt(self, name: str) -> OwnedFd:
        """See Store.adopt()."""
        return self.store.adopt(name, self)

    def closed(self, name: str) -> None:
        self._closed.append(name)

    def flush(self) -> None:
        """No record names what was closed until now: remove it."""
        for name in self._closed:
            self.store.drop(name)
        self._closed.clear()


def _identity(fd: OwnedFd) -> Key:
    """What two descriptors of one open file share.

    Two open files of one regular file count as one as well: either serves as memory.
    """
    info = os.fstat(fd.fileno())
    if stat.S_ISSOCK(info.st_mode) or stat.S_ISREG(info.st_mode):
        return info.st_dev, info.st_ino
    with open(f"/proc/self/fdinfo/{fd.fileno()}") as lines:
        for line in lines:
            if line.startswith("eventfd-id:"):  # proc_pid_fdinfo(5); all eventfds share an inode
                return ("eventfd", line.split()[1])
    return info.st_dev, info.st_ino, info.st_rdev


def _open_descriptors() -> int:
    """How many descriptors this process has: one system call from Linux 6.2 on, and not a list of
    ten thousand with many VMs."""
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))


def _text(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def _number(name: str) -> int:
    number = 0
    for digit in name.lstrip(".vwy").partition(NOTE)[0]:
        number = number * len(_DIGITS) + max(_DIGITS.find(digit), 0)
    return number
