"""The device side of a split virtqueue, over memory that the guest may write at any time. Pure.

Source: virtio specification, "Split Virtqueues".

Rules:
- Ring words (flags, indexes, heads) are read and written only through memoryviews of format "H".
  struct.pack_into zeroes a field before it writes it, and another CPU can see that.
- A descriptor is copied once, and the copy is validated. The shared memory is not read again.
- Chains complete in the order in which they were made available.
- A used element is written before the index that publishes it. Python has no memory fence, so this
  relies on x86-64 ordering of stores and of loads; the program refuses to start on other hosts.
  Notification suppression (EVENT_IDX, NO_NOTIFY) would need a fence. It is neither offered nor
  used: the call eventfd is always signalled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from protocol.virtio_ring import (
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    INDEX_MASK,
    USED_ELEMENT,
    USED_ELEMENT_SIZE,
    DescriptorFlag,
)
from vhost_balloon.errors import RingError, RingErrorReason

NEXT = int(DescriptorFlag.NEXT)
WRITE = int(DescriptorFlag.WRITE)
INDIRECT = int(DescriptorFlag.INDIRECT)
_SPECIAL = NEXT | INDIRECT

_INDEX = 1  # position of idx in both rings, counted in words
_RING = 2  # position of the available ring's first head, counted in words
_USED_RING = 4  # position of the used ring's first element, counted in bytes

WALK_STEP: Final = 512
"""Buffers of a chain to follow in one step, some 0.6 ms. A chain may have 32768."""

ReadMemory = Callable[[int, int], bytes]
"""(guest address, length) -> bytes. Raises RingError if any of it is outside guest memory."""


class Buffer(NamedTuple):
    """One descriptor: a guest physical address, a length in bytes (0 is possible), a direction."""

    address: int
    length: int
    writable: bool


class Chain(NamedTuple):
    """One request: the head that identifies it in the used ring, and its buffers in order."""

    head: int
    buffers: list[Buffer]


class Virtqueue:
    """The queue of one started ring.

    size: the queue size. descriptors, available, used: writable byte views of exactly the ring's
    three parts. base: the available index to start from. read: reads guest memory, for indirect
    tables.
    """

    def __init__(
        self,
        size: int,
        descriptors: memoryview,
        available: memoryview,
        used: memoryview,
        base: int,
        read: ReadMemory,
    ) -> None:
        self.size = size
        self._descriptors = descriptors
        self._available = available.cast("H")
        self._used = used
        self._used_words = used.cast("H")
        self._read = read
        self._next_available = base
        self._next_used = self._used_words[_INDEX]
        self._outstanding = 0

    @property
    def base(self) -> int:
        """The available index of the first unused chain."""
        return (self._next_available - self._outstanding) & INDEX_MASK

    @property
    def lead(self) -> int:
        """How far base is ahead of the used index. Constant while the ring is started."""
        return (self.base - self._next_used) & INDEX_MASK

    def recover(self, lead: int) -> None:
        """Continue from the used index that the process before this one published last."""
        self._next_available = (self._next_used + lead) & INDEX_MASK

    def release(self) -> None:
        """Release the views, so that the memory can be unmapped."""
        for view in (self._available, self._used_words, self._used, self._descriptors):
            view.release()

    def pending(self) -> int:
        """How many chains wait. Raises RingError if the index is more than the size ahead."""
        waiting = (self._available[_INDEX] - self._next_available) & INDEX_MASK
        if waiting > self.size:
            raise RingError(
                RingErrorReason.AVAILABLE_INDEX,
                f"available index is {waiting} ahead, queue size is {self.size}",
            )
        return waiting

    def pop_plain(self, most: int) -> list[Chain]:
        """Take the usual chains at the front, of a single direct buffer each; at most `most`. Any
        other chain, and any fault, is left to popping()."""
        available, size, at = self._available, self.size, self._next_available
        waiting = (available[_INDEX] - at) & INDEX_MASK
        chains: list[Chain] = []
        if waiting > size:
            return chains
        for index in range(at, at + min(waiting, most)):
            head = available[_RING + (index & INDEX_MASK) % size]
            if head >= size:
                break
            address, length, flags, _ = DESCRIPTOR.unpack_from(
                self._descriptors, head * DESCRIPTOR_SIZE
            )
            if flags & _SPECIAL:
                break
            chains.append(Chain(head, [Buffer(address, length, bool(flags & WRITE))]))
        self._next_available = (at + len(chains)) & INDEX_MASK
        self._outstanding += len(chains)
        return chains

    def popping(self) -> Iterator[Chain | None]:
        """Take the next chain in steps: yields None after each WALK_STEP buffers, then the chain,
        or nothing if there is none. A caller that stops earlier leaves the chain where it is.
        Raises RingError."""
        if not self.pending():
            return
        head = self._available[_RING + self._next_available % self.size]
        if head >= self.size:
            raise RingError(RingErrorReason.HEAD, f"head {head} is outside a queue of {self.size}")
        buffers: list[Buffer] = []
        for _ in self._walk(head, buffers):
            yield None
        self._next_available = (self._next_available + 1) & INDEX_MASK
        self._outstanding += 1
        yield Chain(head, buffers)

    def push(self, head: int) -> None:
        """Write the used element of the oldest popped chain; publish() makes it visible.

        Its length is 0: the device never writes to a buffer.
        """
        position = _USED_RING + USED_ELEMENT_SIZE * (self._next_used % self.size)
        USED_ELEMENT.pack_into(self._used, position, head, 0)
        self._next_used = (self._next_used + 1) & INDEX_MASK
        self._outstanding -= 1

    def publish(self) -> None:
        """Make all pushed elements visible to the driver."""
        self._used_words[_INDEX] = self._next_used

    def rewind(self) -> None:
        """Forget all chains that were popped but not pushed: they will be popped again."""
        self._next_available = self.base
        self._outstanding = 0

    def _walk(self, head: int, buffers: list[Buffer]) -> Iterator[None]:
        """Append the buffers of a chain to buffers. A step ends at each yield."""
        position = head
        while True:
            address, length, flags, following = DESCRIPTOR.unpack_from(
                self._descriptors, position * DESCRIPTOR_SIZE
            )
            if flags & INDIRECT:
                # "The device MUST handle the case of zero or more normal chained descriptors
                # followed by a single descriptor" that is indirect. Its WRITE flag is ignored.
                if flags & NEXT:
                    raise RingError(RingErrorReason.INDIRECT, "indirect descriptor with next")
                yield from self._walk_indirect(address, length, buffers)
                return
            buffers.append(Buffer(address, length, bool(flags & WRITE)))
            if not flags & NEXT:
                return
            if following >= self.size:
                raise RingError(
                    RingErrorReason.NEXT, f"next {following} is outside a queue of {self.size}"
                )
            if len(buffers) == self.size:
                raise RingError(
                    RingErrorReason.LOOP, f"chain is longer than the queue size {self.size}"
                )
            position = following
            if not len(buffers) % WALK_STEP:
                yield

    def _walk_indirect(self, address: int, length: int, buffers: list[Buffer]) -> Iterator[None]:
        count = length // DESCRIPTOR_SIZE
        # "A driver MUST NOT create a descriptor chain longer than the Queue Size."
        if not 0 < count <= self.size - len(buffers) or length % DESCRIPTOR_SIZE:
            raise RingError(
                RingErrorReason.INDIRECT,
                f"indirect table of {length} bytes in a queue of {self.size}",
            )
        table = self._read(address, length)
        most = len(buffers) + count
        position = 0
        while True:
            address, length, flags, following = DESCRIPTOR.unpack_from(
                table, position * DESCRIPTOR_SIZE
            )
            if flags & INDIRECT:
                raise RingError(RingErrorReason.INDIRECT, "indirect table inside a table")
            buffers.append(Buffer(address, length, bool(flags & WRITE)))
            if not flags & NEXT:
                return
            if following >= count:
                raise RingError(
                    RingErrorReason.NEXT, f"next {following} is outside a table of {count}"
                )
            if len(buffers) == most:
                raise RingError(RingErrorReason.LOOP, f"chain is longer than its table {count}")
            position = following
            if not len(buffers) % WALK_STEP:
                yield
