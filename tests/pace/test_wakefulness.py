"""How long a request may have waited: with scheduler figures made up here, then real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol.virtio_balloon import Queue
from tests.support.command import daemon
from tests.support.end_to_end import BLOCK, MIB, ByHand, by_hand, fill, serving
from tests.support.huge_pages import need_root
from vhost_balloon.pace import wakefulness as module
from vhost_balloon.pace.wakefulness import GRACE, HOLD_LIMIT, SHORT, TICK, Wakefulness

DATA = 8 * MIB


class Kernel:
    """Replaces the clock and the scheduler's figures."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.delay, self.times = 1000.0, 5.0, 77
        patch.setattr(module, "monotonic", lambda: self.now)
        patch.setattr(module, "_delay", lambda fd: self.delay)
        patch.setattr(module, "_switches", lambda: self.times)
        self.seen = Wakefulness()

    def round(
        self,
        *,
        busy: float = 0.0,
        sleep: float = 0.0,
        times: int = 1,
        delay: float = 0.0,
        timeout: float = 10.0,
    ) -> float:
        """One round of the loop. Returns how long a request found at its end may have waited."""
        self.now += busy
        self.seen.before_io_wait(timeout)
        self.now, self.times, self.delay = self.now + sleep, self.times + times, self.delay + delay
        self.seen.after_io_wait(timeout)
        return self.seen.waited()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def test_the_limits_fit_each_other() -> None:
    assert HOLD_LIMIT == 0.5
    assert 2 * TICK + 2 * SHORT < HOLD_LIMIT


@pytest.mark.parametrize("seconds", [0.1, 5.0, 3600.0])
def test_after_a_clean_sleep_nothing_has_waited(kernel: Kernel, seconds: float) -> None:
    for _ in range(3):
        assert kernel.round(sleep=seconds) == 0
        assert kernel.round(timeout=0, times=0) == 0


def test_a_wait_for_a_processor_counts(kernel: Kernel) -> None:
    assert kernel.round(sleep=5.0, delay=0.7) == pytest.approx(0.7)


@pytest.mark.parametrize("times", [0, 2, 3])
def test_without_proof_of_a_single_sleep_all_its_time_counts(kernel: Kernel, times: int) -> None:
    assert kernel.round(sleep=0.7, times=times) == pytest.approx(0.7)


def test_a_wait_for_a_processor_is_no_sleep(kernel: Kernel) -> None:
    assert kernel.round(busy=0.02, sleep=0.7, delay=0.69) == pytest.approx(0.72)


def test_a_busy_gap_counts_where_there_was_no_sleep(kernel: Kernel) -> None:
    assert kernel.round(busy=0.6, times=0, timeout=0) == pytest.approx(0.6)
    kernel.round()
    assert kernel.round(busy=0.6, times=0) == pytest.approx(0.6)


def test_a_sleep_after_a_busy_gap_is_clean(kernel: Kernel) -> None:
    assert kernel.round(busy=0.6, sleep=3.0) == 0


def test_time_since_the_last_look_counts(kernel: Kernel) -> None:
    kernel.round(sleep=1.0)
    kernel.now += 0.6
    assert kernel.seen.waited() == pytest.approx(0.6)


def test_a_gap_is_remembered_for_a_moment_or_until_the_loop_sleeps(kernel: Kernel) -> None:
    kernel.round(busy=0.6, times=0, timeout=0)
    assert kernel.round(busy=0.04, times=0, timeout=0) == pytest.approx(0.64)
    assert kernel.round(sleep=1.0) == 0
    kernel.round(busy=0.6, times=0, timeout=0)
    for _ in range(3):
        kernel.round(busy=GRACE / 3, times=0, timeout=0)
    assert kernel.round(busy=0.01, times=0, timeout=0) <= 0.01 + GRACE / 3


def test_figures_that_cannot_be_read_prove_nothing(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_delay", lambda fd: None)
    assert kernel.round(sleep=0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("content", [None, b"", b"0 0 0\n", b"1 2\n"])
async def test_without_figures_the_loop_wakes_often_enough(
    content: bytes | None,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
) -> None:
    path = tmp_path / "schedstat"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(module, "_SCHEDSTAT", str(path))
    rounds: list[float] = []
    watching = Wakefulness()
    monkeypatch.setattr(
        watching, "after_io_wait", lambda timeout: rounds.append(trio.current_time())
    )
    nursery.start_soon(watching.run)
    await trio.sleep(5)
    gaps = [after - before for before, after in pairwise(rounds)]
    assert max(gaps) <= TICK + 1e-6
    nursery.cancel_scope.cancel()


async def test_with_figures_an_idle_loop_never_wakes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    nursery.start_soon(Wakefulness().run)
    steps = 0

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += 1

    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.add_instrument(counting := Steps())
    await trio.sleep(3600)
    trio.lowlevel.remove_instrument(counting)
    assert steps == 1, "this task's own"
    nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) == before


# Real processes

Hold = Callable[[int], AbstractContextManager[None]]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stopped by SIGSTOP until the end."""
    os.kill(pid, signal.SIGSTOP)
    while "T (stopped)" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.001)
    yield
    os.kill(pid, signal.SIGCONT)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Frozen by the freezer of a separate cgroup until the end."""
    need_root("FREEZER")
    with freezer() as (group, freeze, thaw):
        (group / "cgroup.procs").write_text(str(pid))
        try:
            freeze()
            yield
        finally:
            thaw()
            (group.parent / "cgroup.procs").write_text(str(pid))


@contextmanager
def freezer() -> Iterator[tuple[Path, Callable[[], object], Callable[[], object]]]:
    for top in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (top / "cgroup.controllers").exists():
            break
    else:
        pytest.fail("no cgroup version 2")
    group = top / f"vhost-balloon-test-{os.getpid()}"
    group.mkdir()
    state = group / "cgroup.freeze"

    def freeze() -> None:
        state.write_text("1")
        while "frozen 1" not in (group / "cgroup.events").read_text():
            time.sleep(0.001)

    try:
        yield group, freeze, lambda: state.write_text("0")
    finally:
        group.rmdir()


async def offer(guest: ByHand) -> bool:
    """Report a block that is in use. Returns whether it was discarded."""
    fill(guest.ram, DATA, BLOCK)
    await guest.report((DATA, BLOCK))
    return guest.ram.resident_in(DATA, BLOCK) == 0


@pytest.mark.parametrize("hold", [stopped, frozen])
@pytest.mark.parametrize("idle", [0.0, 1.5], ids=["busy", "idle"])
async def test_a_request_made_while_the_process_was_held_is_late(
    tmp_path: Path, hold: Hold, idle: float
) -> None:
    path = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={path}", "--stats-interval=0", "--discard=always") as served:
        async with by_hand(path) as guest:
            assert await offer(guest)
            await trio.sleep(idle)
            fill(guest.ram, DATA, BLOCK)
            ring = guest.rings[Queue.REPORTING]
            with hold(served.process.pid):
                ring.add([(DATA, BLOCK, True)])
                ring.kick()
                time.sleep(HOLD_LIMIT + 0.2)  # noqa: ASYNC251 - another process waits
            await ring.wait_used()
            assert guest.ram.resident_in(DATA, BLOCK) == BLOCK, "a late request was discarded"
            await trio.sleep(1)
            assert await offer(guest)
        assert served.end()[0] == 0


async def test_an_idle_process_is_not_late(tmp_path: Path) -> None:
    path = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={path}", "--stats-interval=0", "--discard=always") as served:
        async with by_hand(path) as guest:
            for seconds in (0.1, 0.6, 5.5, 0.46, 1.0, 0.0, 0.7):
                await trio.sleep(seconds)
                assert await offer(guest), f"after {seconds} s"
        assert served.end()[0] == 0


async def test_a_step_that_took_too_long_makes_waiting_requests_late(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with serving(tmp_path, "--discard=always") as host, by_hand(host.path()) as guest:
        assert await offer(guest)
        time.sleep(HOLD_LIMIT + 0.1)  # noqa: ASYNC251 - the daemon runs in this loop
        assert not await offer(guest)
        await trio.sleep(2 * GRACE)
        assert await offer(guest)
