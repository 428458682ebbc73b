"""Our rule in the simulated world: a few scenarios of the many, and the command that runs all."""

from __future__ import annotations

import argparse

import pytest

from tests.policy.ours import Ours
from tests.policy.outcome.measures import Measures, percentile
from tests.policy.rivals.none import Nothing
from tests.policy.run import Run
from tests.policy.simulate import main, rules, run_all, seeds, simulate
from tests.policy.worlds.scenarios import world


def both(scenario: str, seed: int) -> tuple[Measures, Measures]:
    """Without a policy, and with ours."""
    without, ours = simulate((scenario, seed, ("none", "ours")))
    return without, ours


@pytest.mark.parametrize(
    ("scenario", "distress"),
    [
        ("cache", 0),
        ("mixed", 60),
        pytest.param("host256", 60, marks=pytest.mark.slow),
        ("bootstorm", 0),
    ],
)
def test_ours_keeps_a_host_that_is_lost_without_it(scenario: str, distress: int) -> None:
    without, ours = both(scenario, 100)
    assert without.host_oom > 600
    assert ours.host_oom == ours.host_swap_in == 0
    assert ours.below <= 10
    assert ours.distress <= distress
    assert ours.brought > 0.98 * ours.missing > 0


def test_nothing_moves_while_the_host_is_well() -> None:
    _, ours = both("idle", 100)
    assert (ours.moved, ours.reversals, ours.jain) == (0, 0, None)


def test_pressure_without_shortage_harms_nobody() -> None:
    _, ours = both("psiflap", 100)
    assert ours.host_oom == 0
    assert ours.distress <= 1


def test_bursts_are_relieved_within_seconds() -> None:
    _, ours = both("sawtooth", 100)
    assert ours.host_oom == 0
    assert len(ours.episodes) > 10
    assert percentile(ours.episodes, 0.9) <= 12


def test_a_run_is_the_same_each_time() -> None:
    first, second = (Run(world("leak", 5), Ours(), record=True) for _ in range(2))
    assert first.go() == second.go()
    assert first.recording == second.recording
    assert len(first.available) == 1800


def test_a_recording_has_every_second_of_every_vm() -> None:
    run = Run(world("bootstorm", 0), Nothing(), record=True)
    run.go()
    recording = run.recording
    assert recording is not None
    assert len(recording.available) == len(recording.k) == 1800
    late = recording.vms[-1]
    assert late.target[0] != late.target[0]  # it does not run yet
    assert late.target[-1] == late.size
    assert {len(vm.resident) for vm in recording.vms} == {1800}


def test_the_command_prints_tables_and_bars(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--scenario", "psiflap", "--seeds", "0", "--rules", "none,ours"]
    main([*arguments, "--processes", "1", "--markdown"])
    found = capsys.readouterr()
    assert "| psiflap | 0 / 0 |" in found.out
    assert "| host OOM s, sum | 0 | 0 | met |" in found.out
    assert found.err == ""


@pytest.mark.slow
def test_jobs_run_in_other_processes_and_come_out_the_same() -> None:
    job = ("idle", 0, ("none",))
    assert run_all([job, job], 2) == simulate(job) * 2


def test_seeds_and_rules_are_read() -> None:
    assert seeds("0-2,7") == [0, 1, 2, 7]
    assert rules("ours,mom") == ("ours", "mom")
    with pytest.raises(argparse.ArgumentTypeError):
        rules("mine")
