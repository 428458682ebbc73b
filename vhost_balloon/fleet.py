"""Which VMs are served: each has its listening socket, and a task in a cancel scope of its own.

A VM may come and go at any time; no connection is ever ended for it. One that is waited for, being
accepted or served keeps its VM: removal is refused, or put off until the front end has gone.
Everything that adds or removes runs without a checkpoint, so that no front end comes in between.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

import trio

from vhost_balloon.backend import serve_front_end
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.fds import SHORTAGE, OwnedFd
from vhost_balloon.inheritance import LeftVm, left_vms
from vhost_balloon.log import Shortage, logger
from vhost_balloon.revival import keep_vm, lost_front_ends, restore_vm, resume_vm
from vhost_balloon.sockets import Listening, Sockets
from vhost_balloon.vm import UNSEALED, Machine, Vm
from vhost_balloon.vm_spec import Origin, VmSpec

ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when this process or the host has no descriptors or memory left."""


class Member:
    """A VM and where its front ends come from; its socket is open from here until close().

    left: what the process before this one left of it; listening is None for a VM that is not
    configured any more, and is served only until the front end goes that it had then. lost: the
    name of a front end's socket that no record names.
    """

    def __init__(
        self,
        spec: VmSpec,
        listening: AbstractContextManager[Listening] | None,
        left: LeftVm | None = None,
    ) -> None:
        """Raises OperatorError if the socket cannot be opened."""
        self.spec: Final = spec
        self.scope: Final = trio.CancelScope()
        self.successor: VmSpec | None = None
        self.accepting = False
        self.ready: Final = trio.Event()
        """Set once what was left is served again, and all is stored."""
        self.left = left
        self.lost: str | None = None
        self._sockets = ExitStack()
        self.listening: Listening | None = None
        if listening is not None:
            self.listening = self._sockets.enter_context(listening)

    @property
    def listener(self) -> trio.SocketListener:
        assert self.listening is not None
        return self.listening.listener

    def has_visitor(self) -> bool:
        """Whether a front end has connected and is not attached yet."""
        if self.listening is None:
            return False
        poll = select.poll()
        poll.register(self.listener.socket.fileno(), select.POLLIN)
        return self.accepting or bool(poll.poll(0))

    async def accept(self) -> trio.SocketStream:
        """The next front end. While it is being accepted, accepting is true."""
        await trio.lowlevel.checkpoint_if_cancelled()  # after close() there is no socket to ask
        # Not by accept() alone: between the kernel's answer and ours, others may run.
        await trio.lowlevel.wait_readable(self.listener.socket.fileno())
        self.accepting = True
        return await self.listener.accept()

    def is_ready(self, vm: Vm) -> None:
        """What was left is served again. A record that only handed it over is needed no more."""
        self.ready.set()
        left, self.left = self.left, None
        if left is not None and vm.record is not left.record:
            left.record.close()

    def close(self) -> None:
        """End its task at once; remove its socket."""
        self.scope.cancel()
        self._sockets.close()


class Fleet:
    """The VMs of a machine that have a socket; a context manager, which closes the sockets."""

    def __init__(
        self, machine: Machine, sockets: Sockets | None = None, control_socket: Path | None = None
    ) -> None:
        """control_socket: its absolute path, which no VM can have."""
        self.machine: Final = machine
        self._sockets: Final = Sockets(machine.store) if sockets is None else sockets
        self._left: dict[str, LeftVm] = {}
        self._control_socket: Final = control_socket
        self._members: dict[str, Member] = {}
        self._nursery: trio.Nursery | None = None
        self._shortage: Final = Shortage()
        self.gone: Callable[[], None] = lambda: None
        """Called after a VM was removed because its front end had gone."""
        machine.arriving = self._is_any_arriving

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self._members.values():
            member.close()

    def start(self, nursery: trio.Nursery) -> None:
        """Serve in nursery whom add() has added so far, and from now on whom it adds."""
        self._nursery = nursery
        for vm_id, member in self._members.items():
            nursery.start_soon(self._serve, self.machine.vms[vm_id], member)

    # What the process before this one left

    async def inherit(self) -> None:
        """Look at what was left. VMs of add() go on where they were; call resume() after them."""
        self._left = {left.spec.id: left for left in await left_vms(self.machine.store)}

    def has_left(self) -> bool:
        """Whether any VM was left that nobody has added yet."""
        return bool(self._left)

    def configured_before(self) -> list[VmSpec]:
        """The file's VMs as the process before this one knew them."""
        return [left.spec for left in self._left.values() if left.spec.origin is Origin.CONFIG]

    def resume(self) -> None:
        """Add those VMs that nobody configured: they were added at run time, or are configured no
        more, or came by --fd, and stay until their front ends go."""
        sockets = {left.socket_name for left in self._left.values()} | {
            member.left.socket_name for member in self._members.values() if member.left
        }
        for left in list(self._left.values()):
            if left.spec.origin is Origin.CONTROL:
                try:
                    self.add(left.spec)
                    continue
                except OperatorError as error:
                    logger.warning("%s: cannot be added again: %s", left.spec.id, error)
            self._left.pop(left.spec.id, None)
            if left.attached:
                self._stay(left.spec, left)
            else:
                left.drop()
        for path, name in lost_front_ends(self.machine.store, sockets).items():
            for member in self._members.values():
                if member.spec.socket_path == path and member.listening is not None:
                    member.lost = name
                    break
            else:
                self._stay(VmSpec(path.stem, socket_path=path, origin=Origin.CONTROL), None, name)

    def _stay(self, spec: VmSpec, left: LeftVm | None, lost: str | None = None) -> None:
        """Have a VM that nobody configured until its front end goes, by its name if it is free."""
        name, number = spec.id, 1
        while name in self.machine.vms:
            number += 1
            name = f"{spec.id}-{number}"
        member = Member(replace(spec, id=name), None, left)
        member.lost = lost
        self.admit(member).leaving = spec.socket_path is not None

    def _take_left(self, spec: VmSpec) -> LeftVm | None:
        left = self._left.get(spec.id)
        if left is None or left.spec.socket_path != spec.socket_path:
            return None
        return self._left.pop(spec.id)

    async def kept(self, vm: Vm) -> None:
        """Wait until a VM that was added outlives this process, if anything does."""
        member = self._members.get(vm.id)
        if member is not None:
            await member.ready.wait()

    async def ready(self) -> None:
        """Wait until all that was left is served again; remove what nobody needs."""
        for member in list(self._members.values()):
            await member.ready.wait()
        self._sockets.sweep()
        swept = self.machine.store.sweep()
        if swept:
            logger.info("%d descriptors that were left are needed no more", swept)

    # Coming

    def add(self, spec: VmSpec) -> Vm:
        """Listen for a VM's front ends and serve them. Raises OperatorError, and adds nothing."""
        self.check(spec)
        self.check_memory(1)
        return self.admit(self.open(spec))

    def open(self, spec: VmSpec) -> Member:
        """Open its socket without adding it yet. Raises OperatorError."""
        assert spec.socket_path is not None
        if spec.socket_path == self._control_socket:
            raise OperatorError(f"{spec.socket_path} is the control socket")
        for vm in self.machine.vms.values():
            if vm.socket_path == spec.socket_path:
                raise OperatorError(f"{spec.socket_path} is the socket of VM {vm.id!r}")
        member = Member(spec, self._sockets.open(spec.socket_path, spec.settings.access))
        member.left = self._take_left(spec)  # not before: it stays with its front end otherwise
        return member

    def admit(self, member: Member) -> Vm:
        """Add what was opened."""
        spec = member.spec
        vm = self.machine.add(spec)
        self._members[spec.id] = member
        if member.left is not None:
            restore_vm(vm, member.left)
        if self._nursery is not None:
            self._nursery.start_soon(self._serve, vm, member)
            vm.log.info(f"added: listening on {spec.socket_path}")
        return vm

    def check(self, spec: VmSpec) -> None:
        """Raises OperatorError if there is a VM of that name, or no other VM may be added."""
        if spec.id in self.machine.vms:
            raise OperatorError(f"there is a VM {spec.id!r} already")
        if any(vm.socket_path is None for vm in self.machine.vms.values()):
            raise OperatorError("this daemon serves the VM of --fd, and ends with it")

    def check_memory(self, more: int) -> None:
        """Raises OperatorError if one VM's memory could end the daemon for others.

        more: VMs to be added.
        """
        machine = self.machine
        if machine.allow_unsealed_memory or len(machine.vms) + more < 2:
            return
        for vm in machine.vms.values():
            if vm.connection is not None and vm.connection.has_unsealed_memory:
                raise OperatorError(
                    f"the memory of VM {vm.id!r} is not sealed against shrinking, {UNSEALED}"
                )

    # Going

    def remove(self, vm_id: str) -> None:
        """Stop listening for a VM and forget it. Raises CommandError while it has a front end."""
        vm = self.machine.vms.get(vm_id)
        if vm is None:
            raise CommandError(f"Device '{vm_id}' not found", "DeviceNotFound")
        if not self.is_free(vm):
            raise CommandError(f"VM '{vm_id}' has a front end: it can be removed once that is gone")
        self.forget(vm)

    def is_free(self, vm: Vm) -> bool:
        """Whether no front end is attached, nor about to be."""
        member = self._members.get(vm.id)
        return not vm.attached and member is not None and not member.has_visitor()

    def listening(self, vm: Vm) -> Listening | None:
        """Where its front ends connect, None if none can any more."""
        return self._members[vm.id].listening

    def leave(self, vm: Vm, successor: VmSpec | None = None) -> None:
        """Have a VM removed when its front end goes, and another of its name follow it then."""
        vm.leaving = True
        vm.save()
        self._members[vm.id].successor = successor

    def stay(self, vm: Vm) -> None:
        """Take leave() back."""
        vm.leaving = False
        vm.save()
        self._members[vm.id].successor = None

    def forget(self, vm: Vm) -> None:
        """Remove a VM that is_free, with its socket and all that was counted of it."""
        self._members.pop(vm.id).close()
        self.machine.remove(vm)
        vm.forget()
        vm.log.info("removed")

    # Serving

    async def _serve(self, vm: Vm, member: Member) -> None:
        """Serve one front end after the other; the next waits in the backlog meanwhile."""
        with member.scope:
            is_ready = partial(member.is_ready, vm)
            try:
                await keep_vm(vm, member.listening, member.left)
                await resume_vm(vm, member.left, member.lost, is_ready)
            finally:
                is_ready()
            while member.listening is not None and not self._is_to_go(vm, member):
                stream = await self._accept(vm, member)
                if stream is not None:
                    await self._attach(vm, member, stream)
            self._take_leave(vm, member.successor)

    def _is_to_go(self, vm: Vm, member: Member) -> bool:
        return vm.leaving and not member.has_visitor()

    async def _accept(self, vm: Vm, member: Member) -> trio.SocketStream | None:
        """The next front end, or None where it has to wait or was refused."""
        try:
            stream = await member.accept()
        except OSError as error:
            member.accepting = False
            if error.errno not in SHORTAGE:
                raise
            self._shortage.met(error, "front end", vm.id)
            await trio.sleep(ACCEPT_PAUSE)
            return None
        if self.machine.store.room_for_vm(self._attached_but(member)):
            return stream
        member.accepting = False
        self._shortage.say(
            "front end refused: no more descriptors can be had, or stored: raise LimitNOFILE= and "
            "FileDescriptorStoreMax=",
            vm.id,
        )
        stream.socket.close()
        return None

    def _attached_but(self, member: Member) -> int:
        """How many others have a front end, or are about to."""
        return sum(
            other is not member and (other.accepting or self.machine.vms[vm_id].attached)
            for vm_id, other in self._members.items()
        )

    def _is_any_arriving(self) -> bool:
        return any(
            member.accepting and not self.machine.vms[vm_id].attached
            for vm_id, member in self._members.items()
        )

    async def _attach(self, vm: Vm, member: Member, stream: trio.SocketStream) -> None:
        """Serve a connected front end to its end."""
        try:
            await serve_front_end(vm, OwnedFd(stream.socket.detach()))
        finally:
            member.accepting = False

    def _take_leave(self, vm: Vm, successor: VmSpec | None) -> None:
        self.forget(vm)
        self.gone()
        if successor is None:
            return
        try:
            self.add(successor)
        except OperatorError as error:
            # Its front end went at a time of its own: nobody is there to be told but the log.
            vm.log.warning(f"cannot be added again: {error}")


async def serve_fd(vm: Vm, stream: trio.SocketStream, done: Callable[[], None]) -> None:
    """Serve the one front end of --fd; the daemon's work is done with it."""
    await serve_front_end(vm, OwnedFd(stream.socket.detach()), peer_connected=False)
    done()
