"""The progress bar of vhost-balloonctl set --wait."""

from __future__ import annotations

from tests.support.ctl_vms import GIB, MIB, vm
from vhost_balloon.ctl.progress import progress_line


def test_progress() -> None:
    moving = vm(state="moving", actual=768 * MIB)
    assert progress_line(moving, GIB, 1.2) == (
        f"web1 {'█' * 15}{'░' * 15}  50%  768 MiB of 512 MiB, 1 s"
    )
    assert progress_line(vm(), GIB, 1.2, unicode=False).startswith(f"web1 {'#' * 30} 100% ")
    further = vm(state="moving", actual=2 * GIB)
    assert "   0%" in progress_line(further, GIB, 0)
    assert " 100%" in progress_line(vm(), GIB // 2, 0)


def test_progress_without_a_driver() -> None:
    waits = vm(state="no-driver", actual=None, target=GIB)
    assert progress_line(waits, None, 3.0) == f"web1 {'░' * 30} waiting for the guest's driver, 3 s"
