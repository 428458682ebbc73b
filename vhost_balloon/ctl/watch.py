"""watch: queries all VMs repeatedly; a live screen on a terminal, elsewhere a table each time."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

from vhost_balloon.ctl import listing
from vhost_balloon.ctl.client import Round
from vhost_balloon.ctl.folder import Poller
from vhost_balloon.ctl.hub import view as policy_view
from vhost_balloon.ctl.hub.asking import Beside
from vhost_balloon.ctl.output import Output
from vhost_balloon.ctl.terminal import FullScreen
from vhost_balloon.ctl.text import fold
from vhost_balloon.ctl.watch_view import Screen, View


def run(options: argparse.Namespace, output: Output) -> None:
    """Watch until q or Ctrl-C is pressed, or --count is reached. Raises CtlError."""
    with Poller(options) as poller, Beside(options.hub_beside) as hub:
        if output.live and not options.json:
            view = View(options.interval, unicode=output.unicode, colour=output.colour)

            def ask() -> Round:
                hub.ask()
                return poller.ask()

            def take() -> None:
                view.add(poller.vms(), time.monotonic(), hub.take())

            live(options, output, view, ask, take)
        else:
            _print(options, poller, hub, output)


def _print(options: argparse.Namespace, poller: Poller, hub: Beside, output: Output) -> None:
    for clock in updates(options):
        if options.json:
            output.json([vm.raw for vm in poller.poll()])
            continue
        hub.ask()
        vms = poller.poll()
        policy, room = hub.take(), output.room()
        head, reasons = [], None
        if policy is not None:
            head = fold(policy_view.host_line(policy), room)
            reasons = policy_view.reasons(policy, room)
        table = listing.overview(vms, room, reasons) if vms else [listing.no_vm(options)]
        output.lines([*clock, *head, *table])


def updates(options: argparse.Namespace) -> Iterator[list[str]]:
    """Wait for the time of each update; give the lines to print before it."""
    due = time.monotonic()
    for number in range(options.count or 10**9):
        if number:
            now = time.monotonic()
            due = max(due + options.interval, now)
            time.sleep(due - now)
        clock = time.strftime("%Y-%m-%d %H:%M:%S")
        yield ["", clock] if number else [clock]


def live(
    options: argparse.Namespace,
    output: Output,
    view: Screen[Any],
    ask: Callable[[], Round],
    take: Callable[[], None],
) -> None:
    """Show a screen. ask: starts a round of questions; take: gives the view its answers."""
    with FullScreen(output) as screen:
        for number in range(options.count or 10**9):
            due = time.monotonic() + options.interval
            query = ask()
            while not query.step(0):  # keys work even while a VM is silent
                keys = screen.wait(query.patience(), query.fileno())
                if _ends(keys):
                    return
                if keys and number:
                    view.scroll(keys, output.size().lines)
                    _draw(screen, view, output)
            take()
            left = options.interval
            while left > 0:  # at least once, however long the answers took
                _draw(screen, view, output)
                keys = screen.wait(max(due - time.monotonic(), 0))
                if _ends(keys):
                    return
                view.scroll(keys, output.size().lines)
                left = due - time.monotonic()


def _draw(screen: FullScreen, view: Screen[Any], output: Output) -> None:
    size = output.size()
    screen.draw(view.frame(size.columns, size.lines, time.strftime("%H:%M:%S")))


def _ends(keys: str) -> bool:
    return "q" in keys or "Q" in keys
