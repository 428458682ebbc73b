"""An upgrade that is asked for while the front end that was left is not served again yet."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end import MIB, by_hand, eventually
from tests.restarting import hosting

PROGRAM = """\
import os, pathlib, runpy, signal
import trio
from vhost_balloon.backend import FrontEndConnection

asked = pathlib.Path({asked!r})
resume = FrontEndConnection.resume

async def resume_late(connection, left):
    if not asked.exists():
        asked.touch()
        os.kill(os.getpid(), signal.SIGHUP)
        await trio.sleep(0.3)  # the daemon notices meanwhile
    await resume(connection, left)

FrontEndConnection.resume = resume_late
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
