"""watch: queries all VMs repeatedly; a live screen on a terminal, elsewhere a table each time."""

from __future__ import annotations

import argparse
import time

from vhost_balloon.ctl import listing
from vhost_balloon.ctl.folder import Poller
from vhost_balloon.ctl.output import Output
from vhost_balloon.ctl.terminal import FullScreen
from vhost_balloon.ctl.watch_view import View


def run(options: argparse.Namespace, output: Output) -> None:
    """Watch until q or Ctrl-C is pressed, or --count is reached. Raises CtlError."""
    with Poller(options) as poller:
        if output.live and not options.json:
            _live(options, poller, output)
        else:
            _print(options, poller, output)


def _print(options: argparse.Namespace, poller: Poller, output: Output) -> None:
    due = time.monotonic()
    for number in range(options.count or 10**9):
        if number:
            now = time.monotonic()
            due = max(due + options.interval, now)
            time.sleep(due - now)
        vms = poller.poll()
        if options.json:
            output.json([vm.raw for vm in vms])
        else:
            table = listing.overview(vms, output.room()) if vms else [listing.no_vm(options)]
            lines = ["", time.strftime("%Y-%m-%d %H:%M:%S"), *table]
            output.lines(lines if number else lines[1:])


def _live(options: argparse.Namespace, poller: Poller, output: Output) -> None:
    view = View(options.interval, unicode=output.unicode, colour=output.colour)
    with FullScreen(output) as screen:
        for number in range(options.count or 10**9):
            due = time.monotonic() + options.interval
            query = poller.ask()
            while not query.step(0):  # keys work even while a VM is silent
                keys = screen.wait(query.patience(), query.fileno())
                if _ends(keys):
                    return
                if keys and number:
                    view.scroll(keys, output.size().lines)
                    _draw(screen, view, output)
            view.add(poller.vms(), time.monotonic())
            left = options.interval
            while left > 0:  # at least once, however long the answers took
                _draw(screen, view, output)
                keys = screen.wait(max(due - time.monotonic(), 0))
                if _ends(keys):
                    return
                view.scroll(keys, output.size().lines)
                left = due - time.monotonic()


def _draw(screen: FullScreen, view: View, output: Output) -> None:
    size = output.size()
    screen.draw(view.frame(size.columns, size.lines, time.strftime("%H:%M:%S")))


def _ends(keys: str) -> bool:
    return "q" in keys or "Q" in keys
