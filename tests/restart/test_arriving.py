"""A front end that was left and is not served again yet."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.support.end_to_end import MIB, by_hand, eventually
from tests.support.restarting.scenario import hosting

PROGRAM = """\
import os, pathlib, runpy, signal
import trio
from vhost_balloon.front_end.connection import FrontEndConnection

asked = pathlib.Path({asked!r})
reattach = FrontEndConnection.reattach

async def reattach_late(connection, left):
    if not asked.exists():
        asked.touch()
        os.kill(os.getpid(), signal.SIGHUP)
        await trio.sleep(0.3)  # the daemon notices meanwhile
    await reattach(connection, left)

FrontEndConnection.reattach = reattach_late
runpy.run_module('vhost_balloon', run_name='__main__')
"""

WANTING = """\
import errno, os, pathlib, runpy
from vhost_balloon.store.shelf import Shelf

wanting = pathlib.Path({wanting!r})
load = Shelf.load

def load_if_possible(shelf):
    if wanting.exists():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    load(shelf)

Shelf.load = load_if_possible
runpy.run_module('vhost_balloon', run_name='__main__')
"""


async def test_an_upgrade_waits_for_the_front_end_that_was_left(tmp_path: Path) -> None:
    program, asked = tmp_path / "program.py", tmp_path / "asked"
    program.write_text(PROGRAM.format(asked=str(asked)))
    async with (
        hosting(tmp_path, program=(str(program),)) as host,
        by_hand(host.path()) as guest,
    ):
        host.ask("balloon", value=48 * MIB)
        await guest.inflate([5000])
        host.manager.kill()
        await eventually(lambda: "RELOADING=1" in "\n".join(host.manager.told))
        await eventually(lambda: host.log().count("front end resumed") == 2)
        await guest.inflate([5001])
        assert host.vm()["target"] == 48 * MIB
        await guest.start(bases=await guest.stop())


async def test_a_shelf_that_cannot_be_loaded_is_dropped_once_its_front_end_goes(
    tmp_path: Path,
) -> None:
    """The VM waits for descriptors while its front end is there; the next front end does not."""
    program, wanting = tmp_path / "program.py", tmp_path / "wanting"
    program.write_text(WANTING.format(wanting=str(wanting)))
    async with hosting(tmp_path, program=(str(program),)) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            wanting.touch()
            host.manager.kill(wait=False)
            await eventually(lambda: "the VM has to wait: " in host.log())
        await trio.to_thread.run_sync(host.manager.wait_ready)
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            wanting.unlink()
            host.manager.kill()
            await guest.inflate([5001])
        assert "inert" not in host.log()
