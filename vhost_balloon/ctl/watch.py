"""watch: all VMs, again and again; a live screen on a terminal, and a table a time elsewhere."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from vhost_balloon.ctl import listing, model
from vhost_balloon.ctl.client import Client
from vhost_balloon.ctl.model import Vm
from vhost_balloon.ctl.output import Output
from vhost_balloon.ctl.terminal import FullScreen
from vhost_balloon.ctl.watch_view import View


def run(options: argparse.Namespace, client: Client, output: Output) -> None:
    """Watch until q or Ctrl-C is pressed, or --count is reached."""
    if output.live and not options.json:
        _live(options, client, output)
    else:
        _print(options, client, output)


def _print(options: argparse.Namespace, client: Client, output: Output) -> None:
    for number, vms in enumerate(_looks(options, client)):
        if options.json:
            output.json([vm.raw for vm in vms])
            continue
        lines = ["", time.strftime("%Y-%m-%d %H:%M:%S"), *listing.overview(vms, output.room())]
        output.lines(lines if number else lines[1:])


def _looks(options: argparse.Namespace, client: Client) -> Iterator[list[Vm]]:
    """All VMs, an interval apart."""
    number, due = 0, time.monotonic()
    while True:
        yield model.query_vms(client)
        number += 1
        if number == options.count:
            return
        now = time.monotonic()
        due = max(due + options.interval, now)
        time.sleep(due - now)


def _live(options: argparse.Namespace, client: Client, output: Output) -> None:
    view = View(options.interval, unicode=output.unicode, colour=output.colour)
    with FullScreen(output) as screen:
        for _ in range(options.count or 10**9):
            due = time.monotonic() + options.interval
            view.add(model.query_vms(client), time.monotonic())
            left = options.interval
            while left > 0:  # once at least, however long the answer took
                size = output.size()
                screen.draw(view.frame(size.columns, size.lines, time.strftime("%H:%M:%S")))
                keys = screen.wait(max(due - time.monotonic(), 0))
                if "q" in keys or "Q" in keys:
                    return
                view.scroll(keys, size.lines)
                left = due - time.monotonic()
