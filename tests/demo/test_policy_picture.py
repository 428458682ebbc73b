"""The policy's demo: its picture, log, comparison and made-up host."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from vhost_balloon.demo.graph import Style
from vhost_balloon.demo.history import Mark
from vhost_balloon.demo.policy.history import Act, GuestSample, HostSample
from vhost_balloon.demo.policy.host import PlayedHost
from vhost_balloon.demo.policy.picture import format_available, frame, log_line, summary

MIB = 1 << 20
PLAIN = Style(unicode=False)


def act(*, policy: bool) -> Act:
    """Two guests on a host with 400 MiB: reader always has 256 MiB, unless the policy takes half of
    it in second 5; worker has 64, and 192 from second 5 on."""
    result = Act("a title", 400 * MIB, 64 * MIB if policy else 0, 256 * MIB, 10.0)
    for second in range(11):
        late = second >= 5
        reader, reason = (128, "reclaim") if policy and late else (256, "")
        guests = (
            GuestSample("reader", 32 * MIB, 90 * MIB, reader * MIB, reader * MIB, reason),
            GuestSample("worker", 60 * MIB, 0, (192 if late else 64) * MIB, 256 * MIB),
        )
        result.samples.append(HostSample(float(second), guests))
    result.marks = [Mark(0.0, "files", "reader reads."), Mark(5.0, "burst", "worker bursts.")]
    return result


def test_the_picture_shows_what_exceeds_the_host() -> None:
    assert frame(act(policy=False), 70, 20, PLAIN) == [
        "a title                                                        10.0 s",
        "worker bursts.",
        "",
        "         |",
        "  400 MiB|-----------------------------!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
        "         |                             ##############################",
        "         |###########################################################",
        "         |:::::::::::::::::::::::::::::::::::::::::::::::::::::::::::",
        "         |:::::::::::::::::::::::::::::::::::::::::::::::::::::::::::",
        "         |:::::::::::::::::::::::::::::::::::::::::::::::::::::::::::",
        "         |:::::::::::::::::::::::::::::::::::::::::::::::::::::::::::",
        "        0++-----------+-----------+----------+-----------+-----------",
        "          0 s         2 s         4 s        6 s         8 s",
        "          ^files                       ^burst",
        "",
        "                  uses     files  resident    target  reason",
        ":: reader       32 MiB    90 MiB   256 MiB   256 MiB",
        "## worker       60 MiB       0 B   192 MiB   256 MiB",
        "             available -48 MiB of 400 MiB",
    ]


@pytest.mark.parametrize("height", range(3, 30))
@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_it_fits_any_terminal(width: int, height: int) -> None:
    lines = frame(act(policy=True), width, height, PLAIN)
    assert 0 < len(lines) < height
    assert all(len(line) < width for line in lines)


def test_a_line_of_the_log() -> None:
    assert log_line(act(policy=True)) == (
        " 10.0 s  available    80 MiB  reader 128 MiB of 128 MiB (reclaim)  worker 192 MiB"
    )


def test_the_comparison() -> None:
    assert summary(act(policy=False), act(policy=True), "reader") == [
        "                                    reporting only    with the policy",
        "  least available on the host       -48 MiB           80 MiB",
        "  guests used more than it has for  5.0 s             0.0 s",
        "  taken from reader at most         0 B               128 MiB",
        "  reader has in the end             256 MiB           128 MiB",
        "  orders to reader                  -                 reclaim",
    ]


def test_an_act_that_has_not_begun_can_be_drawn() -> None:
    empty = Act("", MIB, 0, MIB, 1.0)
    assert frame(empty, 80, 24, PLAIN)
    assert summary(empty, empty, "reader")


def test_the_made_up_host_has_the_files_of_a_memory_cgroup(tmp_path: Path) -> None:
    with closing(PlayedHost(tmp_path / "host", 400 * MIB)) as host:
        host.spend(300 * MIB)
        assert int((host.folder / "memory.max").read_text()) == 400 * MIB
        assert int((host.folder / "memory.current").read_text()) == 300 * MIB
        host.spend(1)
        assert int((host.folder / "memory.current").read_text()) == 1


def test_what_is_available_may_be_negative() -> None:
    assert [format_available(size) for size in (0, 3 * MIB, -3 * MIB)] == [
        "0 B",
        "3 MiB",
        "-3 MiB",
    ]
