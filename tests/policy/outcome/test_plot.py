"""The picture of a run: complete, small, and the same each time."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.outcome.plot import plot, thinned
from tests.policy.recording import Recording, VmRecording

LENGTH = 1800
GIB = 1024.0


def recording(vms: int) -> Recording:
    """A run in which everything moves all the time; the last VM boots late."""
    wave = [math.sin(second / 7) * math.sin(second / 111) for second in range(LENGTH)]
    return Recording(
        scenario="made-up",
        seed=3,
        rule="ours",
        total=64 * GIB,
        reserve=6.1 * GIB,
        line=2.3 * GIB,
        available=[(5 + 7 * value) * GIB for value in wave],
        k=[min(1.0, max(0.0, value)) for value in wave],
        vms=[vm(f"vm{index}", wave, boots=600 * (index == vms - 1)) for index in range(vms)],
    )


def vm(name: str, wave: list[float], boots: int) -> VmRecording:
    nothing = [math.nan] * boots
    return VmRecording(
        name,
        4 * GIB,
        target=nothing + [(3 + value) * GIB for value in wave[boots:]],
        actual=nothing + [3 * GIB] * (LENGTH - boots),
        demand=nothing + [(2 + value) * GIB for value in wave[boots:]],
        resident=nothing + [(2.5 + value) * GIB for value in wave[boots:]],
        trouble=list(range(900, 960)),
    )


def test_a_picture_names_every_vm_and_line(tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    plot(recording(3), path)
    text = "\n".join(ElementTree.parse(path).getroot().itertext())
    for expected in (
        *("ours in made-up, seed 3", "64 GiB", "vm0, 4 GiB", "vm2, 4 GiB"),
        *("reserve", "k", "minutes", "demand", "resident on the host", "target", "distress"),
    ):
        assert expected in text


def test_the_same_run_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot(recording(2), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_picture_of_many_vms_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    plot(recording(40), path)
    assert path.stat().st_size < 300_000


def test_a_picture_may_be_a_png_without_transparency(tmp_path: Path) -> None:
    path = tmp_path / "run.png"
    plot(recording(1), path)
    image = pytest.importorskip("matplotlib.image").imread(path)
    assert image.shape[0] > 300
    assert image.shape[2] == 3 or image[..., 3].min() == 1.0


values = st.lists(st.floats(-10, 10) | st.just(math.nan), max_size=400)


@given(values, st.integers(2, 300))
def test_a_thinned_line_keeps_its_peaks(line: list[float], points: int) -> None:
    seconds, found = thinned(line, points)
    assert len(found) <= points + 2
    assert seconds == sorted(set(seconds))
    assert found == pytest.approx([line[second] for second in seconds], nan_ok=True)
    known = [value for value in line if not math.isnan(value)]
    if known:
        left = [value for value in found if not math.isnan(value)]
        assert (min(left), max(left)) == (min(known), max(known))


@given(st.lists(st.sampled_from([1.0, 2.0]), min_size=1, max_size=100))
def test_a_line_that_is_not_thinned_is_the_same_line(line: list[float]) -> None:
    """What is left out lies between two equal values."""
    seconds, found = thinned(line, 2 * len(line))
    for second, value in enumerate(line):
        if second not in seconds:
            after = min(at for at, other in enumerate(seconds) if other > second)
            assert found[after - 1] == found[after] == value
