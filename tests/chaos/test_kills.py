"""Runs are killed with SIGKILL, resumed, and end as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.chaos.faults import Fault, Plan
from tests.chaos.points import POINTS, named
from tests.conftest import REPOSITORY


def chaos(*arguments: str) -> dict:
    """The report of the tool, in a process that can be forked."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.chaos", *arguments, "--json", "-"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout)


def assert_nothing_was_lost(report: dict, kills: int) -> None:
    assert not report["faults"]
    assert report["kills"] == report["identical"] >= kills


@pytest.mark.e2e
def test_a_run_that_is_killed_twice_is_the_run_that_was_not():
    points = ("transaction.rows.after", "client.rename.before", "resume.rewind.after")
    report = chaos("--recipe", "golden", "--points", *points, "--kills", "2")
    assert_nothing_was_lost(report, 2)
    assert report["per_run"] == {"golden": {"trials": 1, "kills": 2, "identical": 2}}
    assert report["seed"] == 0


@pytest.mark.slow
@pytest.mark.e2e
def test_runs_killed_at_all_points_in_one_process():
    report = chaos("--transport", "in-process", "--kills", "110")
    assert_nothing_was_lost(report, 100)
    assert not report["never_come_by"]


@pytest.mark.slow
@pytest.mark.e2e
def test_a_machine_that_fails_under_a_simulation_on_ray():
    report = chaos("--transport", "ray", "--kills", "2")
    assert_nothing_was_lost(report, 1)


def test_points_are_chosen_by_the_start_of_their_names():
    assert [point.name for point in named(["commit"])] == ["commit.before", "commit.after"]
    assert named(["all"]) == tuple(POINTS.values())
    with pytest.raises(KeyError, match="no point is called 'comit'"):
        named(["comit"])


def test_a_fault_strikes_at_its_hit_alone_whoever_counts(tmp_path):
    first = Plan.write(tmp_path / "plan", Fault(point="commit.before", hit=3), counting=True)
    second = Plan.read(tmp_path / "plan")
    found = [plan.due("commit.before") for plan in (first, second, first, second)]
    assert [fault is not None for fault in found] == [False, False, True, False]
    assert first.struck()
    assert second.counts() == {"commit.before": 4}
