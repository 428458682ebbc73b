"""A QMP client in memory, and VMs with a fake front end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import trio
import trio.testing

from tests.support.helpers import GIB as GIB
from vhost_balloon.front_end.connection import FrontEndConnection
from vhost_balloon.vm.settings import VmSettings
from vhost_balloon.vm.snapshot import VmStatistics
from vhost_balloon.vm.vm import Vm


class FakeFrontEnd:
    """The part of vm.FrontEnd that these tests need."""

    def __init__(self, vm: Vm, **known: Any) -> None:
        known = {"guest_memory": GIB, "actual": GIB, "driver_ready": True} | known
        known["settings"] = vm.settings
        self.known = VmStatistics(vm.id, True, vm.counters, **known)
        self.targets: list[int] = []
        self.pauses: list[bool] = []
        self.holds: list[int | None] = []
        self.samples_requested = 0
        self.sample: VmStatistics | None = None
        self.disconnected, self.gone = trio.Event(), trio.Event()

    @property
    def orders(self) -> FakeFrontEnd:
        return self

    async def order(self, value: int, seconds: int | None = None, *, policy: bool = False) -> None:
        self.set_target(value)

    def hold(self, seconds: int | None) -> None:
        self.holds.append(seconds)

    def release(self) -> None:
        self.holds.clear()

    def set_target(self, value: int) -> None:
        self.targets.append(value)
        self.known = replace(self.known, target=value)

    def pause(self, paused: bool) -> None:
        self.pauses.append(paused)

    async def disconnect(self) -> None:
        self.disconnected.set()
        await self.gone.wait()

    def request_stats(self) -> None:
        self.samples_requested += 1

    async def fresh_stats(self) -> None:
        """Take `sample`; without one, never return."""
        if self.sample is None:
            await trio.sleep_forever()
        else:
            self.known = self.sample

    def statistics(self, known: VmStatistics, *, details: bool) -> VmStatistics:
        return self.known


def web1() -> Vm:
    """A VM of this name without a front end."""
    return Vm("web1", VmSettings(offered=0))


def attach(vm: Vm, **known: Any) -> FakeFrontEnd:
    front_end = FakeFrontEnd(vm, **known)
    vm.front_end = cast(FrontEndConnection, front_end)
    return front_end


class Client:
    """A QMP client in memory or on a socket: replies and events in the order of arrival."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def read(self) -> Any:
        """The next message. Fails at the end of the stream."""
        while b"\r\n" not in self._buffer:
            data = await self.stream.receive_some(65536)
            assert data, "the server hung up"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        assert line.isascii()
        return json.loads(line)

    async def read_to_end(self) -> list[Any]:
        while data := await self.stream.receive_some(65536):
            self._buffer += data
        return [json.loads(line) for line in self._buffer.splitlines()]

    async def raw(self, data: bytes) -> Any:
        await self.stream.send_all(data)
        return await self.read()

    async def execute(self, command: str, **arguments: Any) -> Any:
        """The "return" of a command that must succeed."""
        return (await self.raw(request(command, **arguments)))["return"]

    async def failure(self, command: str, **arguments: Any) -> tuple[str, str]:
        """Class and desc of a command that must fail."""
        error = (await self.raw(request(command, **arguments)))["error"]
        assert error.keys() == {"class", "desc"}
        return error["class"], error["desc"]

    async def negotiate(self) -> None:
        assert (await self.read()).keys() == {"QMP"}
        assert await self.execute("qmp_capabilities") == {}


def request(command: str, **arguments: Any) -> bytes:
    return json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts the streams of connect()."""

    def __init__(self) -> None:
        self._send, self._accept = trio.open_memory_channel[trio.abc.Stream](300)

    async def accept(self) -> trio.abc.Stream:
        return await self._accept.receive()

    async def aclose(self) -> None:
        self._accept.close()

    def connect(self, *, lockstep: bool = False) -> Client:
        """lockstep: nothing is buffered, so a server waits until the client reads."""
        make = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        ours, theirs = make()
        self._send.send_nowait(theirs)
        return Client(ours)


def change(vm: Vm, actual: int | None) -> None:
    attach(vm, actual=actual)
    vm.actual_changed()


# The schema


Schema = Mapping[str, Mapping[str, Any]]


def check(schema: Schema, kind: str, value: Any) -> None:
    """Assert that value is of the type kind in schema."""
    entity = schema[kind]
    match entity["meta-type"]:
        case "builtin":
            python: dict[str, set[type]] = {
                "str": {str},
                "int": {int},
                "bool": {bool},
                "number": {int, float},
            }
            assert kind == "any" or type(value) in python[kind], kind
        case "enum":
            assert value in entity["values"]
        case "array":
            for element in value:
                check(schema, entity["element-type"], element)
        case "object":
            members = {member["name"]: member for member in entity["members"]}
            assert value.keys() <= members.keys(), kind
            for name, member in members.items():
                if name in value:
                    check(schema, member["type"], value[name])
                else:
                    assert "default" in member, f"{kind} lacks {name}"
        case _:
            raise AssertionError(f"{kind} is not a type")


async def schema_of(client: Client) -> Schema:
    entities = await client.execute("query-qmp-schema")
    named = {entity["name"]: entity for entity in entities}
    assert len(named) == len(entities), "names are unique"
    return named
