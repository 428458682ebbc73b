"""The demo's picture, log and summary."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from vhost_balloon.demo.graph import Style
from vhost_balloon.demo.history import CameBack, History, Mark, Sample, came_back
from vhost_balloon.demo.picture import frame, log_line, summary

MIB = 1 << 20
PLAIN = Style(unicode=False)


def history(seconds: float = 8.0) -> History:
    """Return the history of a guest that uses 384 MiB for 2 s; the host gets it back 2 s later."""
    result = History("a title", 512 * MIB, 8.0)
    for tenth in range(int(seconds * 10) + 1):
        time = tenth / 10
        in_use = 384 * MIB if 2 <= time < 4 else 64 * MIB
        resident = max(in_use, 384 * MIB if 2 <= time < 6 else 0)
        balloon = 128 * MIB if time >= 7 else 0
        result.samples.append(Sample(time, in_use, resident, balloon, 320 * MIB, 318 * MIB))
    result.marks = [Mark(0, "boot", "It boots."), Mark(4, "free", "It frees."), Mark(7, "x", "X.")]
    return result


def test_the_whole_picture_in_a_small_terminal() -> None:
    assert frame(history(), 60, 16, PLAIN) == [
        "a title                                               8.0 s",
        "X.",
        "",
        "  512 MiB+                                          ///////",
        "  384 MiB+            ############::::::::::::",
        "  256 MiB+            ############::::::::::::",
        "  128 MiB+#################################################",
        "        0++-----------+-----------+------------+-----------",
        "          0 s         2 s         4 s          6 s",
        "          ^boot                   ^free             ^x",
        "",
        "   guest uses ####                                   64 MiB",
        "  host spends ::::                                   64 MiB",
        "      balloon /////////                             128 MiB",
        "              reported 320 MiB, freed 318 MiB",
    ]


def test_parts_of_a_row_are_drawn_in_eighths() -> None:
    def columns(in_use: int) -> str:
        sampled = History("", 4 * MIB, 1.0, [Sample(1.0, in_use, in_use)])
        lines = [line.ljust(80) for line in frame(sampled, 80, 16, Style())]
        return "".join(line[10] for line in reversed(lines) if line[9] in "┤│")

    assert columns(0) == "    "
    assert columns(MIB // 8) == "▁   "
    assert columns(MIB + MIB // 2) == "█▄  "
    assert columns(4 * MIB) == "████"


@pytest.mark.parametrize("width", [20, 39, 40, 60, 80, 120, 300])
@pytest.mark.parametrize("height", [1, 2, 5, 10, 11, 16, 24, 50, 200])
@pytest.mark.parametrize("style", [Style(), Style(colour=True), PLAIN])
def test_it_fits_every_terminal(width: int, height: int, style: Style) -> None:
    for seconds in (0.0, 3.0, 8.0, 30.0):
        lines = frame(history(seconds), width, height, style)
        assert 1 <= len(lines) <= max(1, height - 1)
        assert max(len(re.sub(r"\x1b\[\d+m", "", line)) for line in lines) < width
    assert frame(History("empty", 0, 1.0), width, height, style)


def test_at_80_by_24_it_fills_the_terminal() -> None:
    lines = frame(history(), 80, 24, Style())
    assert len(lines) == 23
    assert sum(line[9] in "┤│" for line in lines if len(line) > 9) == 12
    assert [line.split("┤")[0].strip() for line in lines if "┤" in line] == [
        "512 MiB",
        "384 MiB",
        "256 MiB",
        "128 MiB",
    ]


def test_colour_does_not_change_the_text() -> None:
    coloured = frame(history(), 80, 24, Style(colour=True))
    bare = [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in coloured]
    assert bare == [line.rstrip() for line in frame(history(), 80, 24, Style())]
    assert any("\x1b[32m" in line for line in coloured)
    assert all(line.count("\x1b[0m") * 2 == line.count("\x1b[") for line in coloured)


def test_plain_style_is_ascii_and_without_escapes() -> None:
    text = "\n".join(frame(history(), 80, 24, PLAIN))
    assert text.isascii()
    assert "\x1b" not in text


def test_the_time_axis_grows_with_a_longer_play() -> None:
    assert "30 s" in "\n".join(frame(history(33.0), 80, 24, PLAIN))
    assert "30 s" not in "\n".join(frame(history(), 80, 24, PLAIN))


def test_a_mark_without_room_is_an_arrow() -> None:
    crowded = history()
    crowded.marks = [Mark(0.0, "boot", ""), Mark(0.2, "touch", ""), Mark(4.0, "free", "")]
    line = next(line for line in frame(crowded, 80, 24, PLAIN) if "^" in line)
    assert line.split() == ["^^touch", "^free"]


def test_at_the_right_edge_the_name_precedes_the_arrow() -> None:
    late = history()
    late.marks = [Mark(0.0, "boot", ""), Mark(7.7, "deflate", "")]
    line = next(line for line in frame(late, 80, 24, PLAIN) if "^" in line)
    assert line.split() == ["^boot", "deflate^"]


def test_the_log_line() -> None:
    assert log_line(history()) == (
        "  8.0 s  x        guest   64 MiB  host   64 MiB  balloon  128 MiB  "
        "reported  320 MiB  freed  318 MiB"
    )
    assert "guest      0 B" in log_line(History("", 0, 1))


def test_when_the_memory_came_back() -> None:
    back = came_back(history(), "free")
    assert (back.released, back.seconds) == (320 * MIB, 2.0)
    assert back.share == pytest.approx(0.95)


def test_memory_that_comes_back_after_its_part_does_not_count() -> None:
    slow = history()
    slow.marks[2] = Mark(5.0, "again", "")
    assert came_back(slow, "free") == CameBack(320 * MIB, 0.0, 0.0)
    assert came_back(slow, "no such part") == CameBack(0, 0.0, 0.0)
    assert "it did not" in summary(slow)[-1]


def test_memory_that_comes_back_in_part() -> None:
    partly = history()
    for index, sample in enumerate(partly.samples):
        if sample.time >= 6:
            partly.samples[index] = replace(sample, resident=64 * MIB + 80 * MIB)
    back = came_back(partly, "free")
    assert (back.released, back.share, back.seconds) == (320 * MIB, 0.75, 2.0)
    assert "75 % of 320 MiB within 2.0 s" in summary(partly)[-1]


def test_the_summary() -> None:
    assert summary(history()) == [
        "  guest memory            512 MiB",
        "  host spent at most      384 MiB (the guest used 384 MiB)",
        "  host spends now         64 MiB (the guest uses 64 MiB)",
        "  reported by the guest   320 MiB",
        "  freed for the host      318 MiB",
        "  freed memory came back  95 % of 320 MiB within 2.0 s",
    ]
    assert summary(History("", 0, 1)) == []
