"""The policy asks and orders all VMs at once, and trusts none of their daemons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.end_to_end import LogLines
from tests.support.fakes.host_vms import (
    DONE,
    EVENT,
    GREETING,
    Behaviour,
    answering,
    breaking_off,
    daemons,
    dripping,
    endless,
    listen,
    reply,
    saying,
    serve,
)
from tests.support.fakes.policed_daemon import PolicedDaemon, policed_document
from tests.support.helpers import GIB
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import CommandError
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.hub import policed
from vhost_balloon.hub.policed import SAMPLE_TIME, TOO_OLD, PolicedVms
from vhost_balloon.hub.vm_figures import read_policed
from vhost_balloon.hub.vms import HUB_PLACES, PATIENCE
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.interfaces import Policed
from vhost_balloon.policy.settings import PolicySettings

SETTINGS = PolicySettings(vms={"web2": VmSettings(on=False)})
READY = GREETING + DONE
NOW = 1000.0


@pytest.fixture
def clock() -> MockClock:
    """Time jumps after 0.2 s without activity; threads take less."""
    return MockClock(autojump_threshold=0.2)


def vms_of(folder: Path) -> PolicedVms:
    return PolicedVms([folder], InternalErrors(HUB_PLACES), clock=lambda: NOW)


def behaviours(fakes: Mapping[str, PolicedDaemon]) -> dict[str, Behaviour]:
    return {name: fake.behave for name, fake in fakes.items()}


async def test_looking_and_ordering(tmp_path: Path, clock: MockClock) -> None:
    fakes = {name: PolicedDaemon() for name in ("web1", "web2")}
    vms = vms_of(tmp_path)
    async with daemons(tmp_path, behaviours(fakes)):
        found = await vms.look(SETTINGS, ())
        assert found["web1"].figures.obstacle is None
        assert found["web2"].figures.obstacle is Reason.OFF
        began = trio.current_time()
        await vms.look(SETTINGS, ["web2", "gone"])
        assert trio.current_time() - began == pytest.approx(SAMPLE_TIME, abs=0.2)
        assert await vms.order({"web1": 2 * GIB}) == {}
    vms.close()
    assert fakes["web1"].calls == [
        ("query-vms", {}),
        ("query-vms", {}),
        ("balloon", {"value": 2 * GIB, "policy": True}),
    ]
    assert [command for command, _ in fakes["web2"].calls] == [
        "query-vms",
        "balloon-request-stats",
        "query-vms",
    ]
    assert {fake.connections for fake in fakes.values()} == {1}


async def test_a_new_socket_or_front_end_is_another_guest(tmp_path: Path) -> None:
    vms, guests, path = vms_of(tmp_path), [], tmp_path / "web1.control"
    fake = PolicedDaemon()
    async with trio.open_nursery() as nursery:
        for pid in (77, 78):
            nursery.start_soon(serve, listen(path), fake.behave)
            for _ in range(2):
                guests.append((await vms.look(SETTINGS, ()))["web1"].figures.guest)
            fake.document["front-end-pid"] = pid
            guests.append((await vms.look(SETTINGS, ()))["web1"].figures.guest)
            path.unlink()
        nursery.cancel_scope.cancel()
    vms.close()
    first, second, third, fourth, *rest = guests
    assert first == second == third
    assert len({first, fourth, guests[5]}) == 3
    assert rest[0] == fourth


async def test_an_older_daemon_refuses_and_is_never_ordered_without_the_mark(
    tmp_path: Path,
) -> None:
    fake = PolicedDaemon(**{"stats-taken": None, "stats-actual": None, "held": None})
    fake.refusals = {
        "balloon": "Parameter 'policy' is unexpected",
        "policy-release": "The command policy-release has not been found",
        "balloon-request-stats": "The command balloon-request-stats has not been found",
    }
    vms = vms_of(tmp_path)
    async with daemons(tmp_path, behaviours({"web1": fake})):
        found = await vms.look(SETTINGS, ["web1"])
        assert found["web1"].figures.sample is None
        for _ in range(2):
            [text] = (await vms.order({"web1": GIB})).values()
            assert text == f"Parameter 'policy' is unexpected: {TOO_OLD}"
        with pytest.raises(CommandError, match=f"has not been found: {TOO_OLD}$"):
            await vms.release("web1")
    vms.close()
    assert all(arguments["policy"] for name, arguments in fake.calls if name == "balloon")
    assert fake.connections == 1, "a refusal ends no connection"


async def test_a_refusal_is_made_safe_to_show(tmp_path: Path) -> None:
    fake = PolicedDaemon()
    fake.refusals = {"balloon": "\x1b[2Jno\n" + "x" * 10_000}
    vms = vms_of(tmp_path)
    async with daemons(tmp_path, behaviours({"web1": fake})):
        await vms.look(SETTINGS, ())
        [text] = (await vms.order({"web1": GIB})).values()
    vms.close()
    assert text.isprintable()
    assert len(text) < 300


BAD: dict[str, Behaviour] = {
    "never speaks": saying(),
    "stops after the greeting": saying(GREETING),
    "stops after the negotiation": saying(READY),
    "drips": dripping(READY + reply([policed_document()])),
    "closes at once": breaking_off(),
    "closes in the answer": breaking_off(READY, reply([policed_document()])[:-9]),
    "floods with events": endless(READY, EVENT * 100),
    "answers with 1 GiB": endless(READY + b'{"return": "', b"x" * 65536),
    "speaks HTTP": saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "refuses the negotiation": saying(GREETING + b'{"error": {"desc": "no"}}\r\n'),
    "refuses": answering(b'{"error": {"class": "GenericError", "desc": "no"}}\r\n'),
    "refuses without a reason": answering(b'{"error": 5}\r\n'),
    "is nested deeply": answering(b'{"return": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\r\n"),
    "lies about its size": answering(reply([policed_document(actual=-1)])),
    "has NaN": answering(b'{"return": [{"attached": true, "stats-taken": NaN}]}\r\n'),
    "has no VM": answering(reply([])),
    "has two VMs": answering(reply([policed_document()] * 2)),
}


async def test_bad_daemons_beside_a_good_one(
    short_folder: Path, clock: MockClock, log_lines: LogLines
) -> None:
    """Twice, because leftovers of the first look must not harm the second."""
    vms, fake = vms_of(short_folder), PolicedDaemon()
    async with daemons(short_folder, {**BAD, "good": fake.behave}):
        for _ in range(2):
            began = trio.current_time()
            found = await vms.look(SETTINGS, [*BAD, "good"])
            refused = await vms.order(dict.fromkeys([*BAD, "good"], GIB))
            assert trio.current_time() - began < 2 * PATIENCE + 0.5
            assert found.keys() == {"good"}
            assert "good" not in refused
            assert "stops after the negotiation" in refused
            assert vms.left_out.keys() == BAD.keys()
            assert vms.left_out["speaks HTTP"] == "it sends invalid JSON"
    vms.close()
    said = log_lines.having("the policy leaves it out")
    assert sorted(line.split(": ")[1] for line in said) == sorted(BAD), "one line each"


async def test_200_daemons_that_hang_cost_one_second(short_folder: Path, clock: MockClock) -> None:
    fake = PolicedDaemon()
    hanging = {f"hang{n}": saying(READY) for n in range(200)}
    vms = vms_of(short_folder)
    async with daemons(short_folder, {**hanging, "good": fake.behave}):
        began = trio.current_time()
        assert (await vms.look(SETTINGS, ())).keys() == {"good"}
        assert trio.current_time() - began < PATIENCE + 0.5
    vms.close()


async def test_a_daemon_that_is_restarted_is_asked_again(tmp_path: Path) -> None:
    streams: list[trio.SocketStream] = []
    fake = PolicedDaemon()

    async def behave(stream: trio.SocketStream) -> None:
        streams.append(stream)
        await fake.behave(stream)

    vms = vms_of(tmp_path)
    async with daemons(tmp_path, {"web1": behave}):
        await vms.look(SETTINGS, ())
        await streams[0].aclose()
        assert await vms.order({"web1": GIB}) == {}
        await streams[1].aclose()
        assert (await vms.look(SETTINGS, ())).keys() == {"web1"}
    vms.close()


async def test_a_daemon_that_lied_and_recovers(tmp_path: Path, log_lines: LogLines) -> None:
    fake = PolicedDaemon(actual=-1)
    vms = vms_of(tmp_path)
    async with daemons(tmp_path, behaviours({"web1": fake})):
        for actual, names in ((-1, set()), (-1, set()), (GIB, {"web1"}), (GIB, {"web1"})):
            fake.document["actual"] = actual
            assert set(await vms.look(SETTINGS, ())) == names
    vms.close()
    assert vms.left_out == {}
    [lie, again] = log_lines.lines
    assert lie.startswith("warning: web1: the policy leaves it out: its answer: ValueError: -1 is")
    assert again == "info: web1: the policy has its figures again"


async def test_a_vm_that_goes_between_look_and_order(tmp_path: Path) -> None:
    vms = vms_of(tmp_path)
    async with daemons(tmp_path, behaviours({"web1": PolicedDaemon()})):
        await vms.look(SETTINGS, ())
    (tmp_path / "web1.control").unlink()
    refused = await vms.order({"web1": GIB, "never": GIB})
    assert refused == {
        "web1": "its daemon does not answer: No such file or directory",
        "never": "it has gone",
    }
    assert await vms.look(SETTINGS, ()) == {}
    assert await vms.order({"web1": GIB}) == {"web1": "it has gone"}


async def test_holds_are_passed_on(tmp_path: Path, clock: MockClock) -> None:
    fake = PolicedDaemon()
    vms = vms_of(tmp_path)
    async with daemons(tmp_path, behaviours({"web1": fake})):
        await vms.hold("web1", 60)
        await vms.hold("web1", None)
        await vms.release("web1")
        with pytest.raises(CommandError, match="'web9' not found") as caught:
            await vms.hold("web9", None)
        assert caught.value.error_class == "DeviceNotFound"
        fake.refusals["policy-hold"] = "Parameter 'seconds' expects a number up to 31536000"
        with pytest.raises(CommandError, match=r"^Parameter 'seconds' expects"):
            await vms.hold("web1", 1 << 40)
        fake.silent.add("policy-release")
        with pytest.raises(CommandError, match="no answer within 1 s"):
            await vms.release("web1")
    vms.close()
    assert fake.calls[:3] == [
        ("policy-hold", {"seconds": 60}),
        ("policy-hold", {}),
        ("policy-release", {}),
    ]


async def test_an_operator_and_a_tick_at_once(tmp_path: Path, clock: MockClock) -> None:
    """One conversation with a daemon at a time, and none is mistaken for another's."""
    fake = PolicedDaemon()
    vms = vms_of(tmp_path)
    async with daemons(tmp_path, behaviours({"web1": fake})):
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(vms.look, SETTINGS, ["web1"])
                nursery.start_soon(vms.hold, "web1", 5)
                nursery.start_soon(vms.look, SETTINGS, ())
                nursery.start_soon(vms.release, "web1")
        assert (await vms.look(SETTINGS, ())).keys() == {"web1"}
    vms.close()
    assert fake.connections == 1


async def test_closing_while_a_daemon_is_asked(tmp_path: Path, clock: MockClock) -> None:
    fake = PolicedDaemon()
    fake.silent.add("policy-hold")
    vms = vms_of(tmp_path)

    async def hold() -> None:
        with pytest.raises(CommandError, match="connection closed"):
            await vms.hold("web1", None)

    async with daemons(tmp_path, behaviours({"web1": fake})):
        await vms.look(SETTINGS, ())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.sleep(0.1)
            vms.close()
        assert (await vms.look(SETTINGS, ())).keys() == {"web1"}
    vms.close()


async def test_a_failure_of_ours_costs_one_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    def read(answer: object, *rest: Any) -> Policed:
        if "bug" in str(answer):
            raise ZeroDivisionError
        return read_policed(answer, *rest)

    monkeypatch.setattr(policed, "read_policed", read)
    errors = InternalErrors(HUB_PLACES)
    vms = PolicedVms([tmp_path], errors)
    fakes = {"web1": PolicedDaemon(), "web2": PolicedDaemon(state="bug")}
    async with daemons(tmp_path, behaviours(fakes)):
        assert (await vms.look(SETTINGS, ())).keys() == {"web1"}
    vms.close()
    assert errors.counts["vm"] == 1
    assert log_lines.having("warning: internal error in vm", "ZeroDivisionError")
