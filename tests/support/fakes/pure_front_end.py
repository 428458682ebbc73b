"""A front end that drives a session without I/O, and the payloads that it sends."""

from __future__ import annotations

import struct
from typing import Final

from protocol.vhost_user import VERSION, HeaderFlag, Request
from protocol.vhost_user_payloads import Region
from tests.support.helpers import GIB, no_fds
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.errors import FrontEndError
from vhost_balloon.memory.region import check_disjoint
from vhost_balloon.session import effects, requests
from vhost_balloon.session.effects import Effect
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import PROTOCOL_FEATURES, TRANSPORT_FEATURES, Session

ALL_BALLOON_FEATURES: Final = (1 << 6) - 1
EVERY_FEATURE: Final = ALL_BALLOON_FEATURES | TRANSPORT_FEATURES

R = Request
U64 = struct.Struct("<Q").pack
STATE = struct.Struct("<II").pack
ACK, NACK = U64(0), U64(1)
NO_FD = 0x100

MEMORY: Final = Region(guest_address=0, size=GIB, user_address=0x7F00_0000_0000, mmap_offset=0)


def region(value: Region = MEMORY) -> bytes:
    return struct.pack(
        "<QQQQQ", 0, value.guest_address, value.size, value.user_address, value.mmap_offset
    )


def address(index: int, at: int = 0x1000, flags: int = 0) -> bytes:
    return struct.pack("<IIQQQQ", index, flags, at, at + 0x2000, at + 0x1000, 0)


def config(data: bytes, offset: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<III", offset, len(data), flags) + data


def actual(pages: int) -> bytes:
    return config(struct.pack("<IIII", 77, pages, 77, 0))


class PureFrontEnd:
    """Sends messages to a Session and carries its effects out on paper.

    effects: all of them, in order. failing: the kind of effect that cannot be carried out.
    bases: what a ring returns when it is stopped. regions and started: the world as the effects
    made it, which the session's own account must match.
    """

    def __init__(self, offered: int = ALL_BALLOON_FEATURES) -> None:
        self.balloon = Balloon()
        self.session = Session(self.balloon, offered)
        self.effects: list[Effect] = []
        self.failing: type[Effect] | None = None
        self.bases: dict[int, int] = {}
        self.regions: list[object] = []
        self.started: set[int] = set()
        self.refusals: list[str] = []
        self.fds_left = 0

    def negotiate(
        self, features: int = EVERY_FEATURE, protocol_features: int = PROTOCOL_FEATURES
    ) -> None:
        """What a front end sends first."""
        self.send(Request.SET_PROTOCOL_FEATURES, protocol_features.to_bytes(8, "little"))
        self.send(Request.SET_FEATURES, features.to_bytes(8, "little"))
        self.effects.clear()

    def send(
        self, request: int, payload: bytes = b"", fds: int = 0, *, need_reply: bool = False
    ) -> bytes | None:
        """The reply's payload or None; why it was refused, if it was, is in refusals."""
        flags = VERSION | (HeaderFlag.NEED_REPLY if need_reply else 0)
        return self.deliver(Message(request, flags, payload, no_fds(fds)))

    def deliver(self, message: Message) -> bytes | None:
        given = list(message.fds)
        try:
            reply = self._handle(message)
        except FrontEndError as error:
            assert message.fds == given, "a refused message keeps its descriptors"
            self.refusals.append(str(error))
            reply = requests.refuse(self.session, message)
        self.fds_left = len(message.fds)
        return reply

    def _handle(self, message: Message) -> bytes | None:
        steps = requests.handle(self.session, message)
        try:
            effect = next(steps)
            while True:
                try:
                    result = self._carry_out(effect)
                except FrontEndError as error:
                    effect = steps.throw(error)
                else:
                    self.effects.append(effect)
                    effect = steps.send(result)
        except StopIteration as stop:
            reply: bytes | None = stop.value
            return reply

    def _carry_out(self, effect: Effect) -> int | None:
        """As front_end/carrying_out.py: raises FrontEndError for what it refuses."""
        if self.failing is not None and isinstance(effect, self.failing):
            raise FrontEndError("cannot be carried out")
        match effect:
            case effects.StopRing(index):
                self.started.remove(index)
                return self.bases.get(index, 0)
            case effects.StartRing(index):
                assert index not in self.started
                self.started.add(index)
            case effects.AddRegion(region):
                check_disjoint(self.session.regions, region)
                self.regions.append(region)
            case effects.RemoveRegion(region):
                self.regions.remove(region)
            case effects.ReplaceRegions(regions):
                for index, (region, _) in enumerate(regions):
                    check_disjoint((other for other, _ in regions[:index]), region)
                self.regions = [region for region, _ in regions]
        return None

    def took(self, kind: type[Effect]) -> int:
        """How many effects of a kind there were; they are forgotten with this."""
        count = sum(isinstance(effect, kind) for effect in self.effects)
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return count


def negotiated() -> PureFrontEnd:
    """A front end that has agreed on everything and given its memory."""
    front_end = PureFrontEnd()
    front_end.negotiate()
    front_end.send(R.ADD_MEM_REG, region(), fds=1)
    front_end.effects.clear()
    return front_end


def set_up(front_end: PureFrontEnd, index: int, base: int = 0) -> None:
    """What comes before a ring's start, and the start."""
    front_end.send(R.SET_VRING_NUM, STATE(index, 64))
    front_end.send(R.SET_VRING_BASE, STATE(index, base))
    front_end.send(R.SET_VRING_ADDR, address(index))
    front_end.send(R.SET_VRING_KICK, U64(index), fds=1)
    front_end.send(R.SET_VRING_CALL, U64(index), fds=1)


def start_all(front_end: PureFrontEnd, bases: dict[int, int]) -> None:
    """A driver's start as QEMU tells it: all rings are set up, then all five are enabled."""
    for index, base in bases.items():
        set_up(front_end, index, base)
    for index in range(5):
        front_end.send(R.SET_VRING_ENABLE, STATE(index, 1))
    assert front_end.refusals == []


def stop_all(front_end: PureFrontEnd, bases: dict[int, int]) -> None:
    """Stop, reboot and unload as QEMU tells them, all alike."""
    front_end.bases = bases
    for index in range(5):
        front_end.send(R.SET_VRING_ENABLE, STATE(index, 0))
    for index, base in bases.items():
        assert front_end.send(R.GET_VRING_BASE, STATE(index, 0)) == STATE(index, base)
    assert front_end.session.suspended
