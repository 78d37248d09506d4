"""Kill a run, resume it, and compare it with the run that was never killed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.conduct import submit
from tests.chaos.faults import Fault, Plan
from tests.chaos.forking import forked, stopwatch, warm
from tests.chaos.recipes import recipe
from tests.chaos.stages import Run, end_all_of
from tests.chaos.verdict import committed, facts, judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """``faults`` strike one after another: the first a run, each other one its resumption."""

    recipe: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        struck = ", then ".join(f"{f.action} at {f.point} #{f.hit}" for f in self.faults)
        return f"{self.recipe}: {struck}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A run that nobody kills: what it left, how often it came by each point, and when resumed."""

    folder: Path
    run_id: str
    recipe: str
    facts: Mapping[str, Any]
    counts: Mapping[str, int]
    seconds: float

    @classmethod
    def of(cls, name: str, folder: Path, seed: int) -> Golden:
        """Submit the run of a recipe, keep that for every trial, and carry a copy of it out."""
        template = Run(folder=folder / name, run_id="", recipe=name)
        template.folder.mkdir(parents=True)
        run_id = forked(lambda: submit(recipe(name, seed), template.home))
        run = _copy(template, folder / f"{name}-golden", run_id)
        plan, took = Plan.write(run.folder / "plan", counting=True), stopwatch()
        if run.go(plan, again=False) != "completed":
            raise ChildProcessError(f"the golden run did not end well: {run.log.read_text()}")
        seconds = took()
        found = forked(lambda: facts(run.home, run_id), run.log)
        if name != "ray":
            warm((plan.folder / "modules").read_text(encoding="utf-8").split())
        return cls(
            folder=template.folder,
            run_id=run_id,
            recipe=name,
            facts=found,
            counts=plan.counts(),
            seconds=seconds,
        )

    def tried(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """``carried_out``, where a process that ended by itself is one more thing that is wrong."""
        took = stopwatch()
        try:
            return self.carried_out(trial, folder)
        except ChildProcessError as error:
            return {"kills": [], "faults": [str(error)], "left": [], "seconds": took()}

    def carried_out(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """Carry out a trial in ``folder``, which is gone afterwards if all is well.

        ``kills`` are the points at which processes died; ``faults`` what is wrong, in words;
        ``left`` temporary files that somebody removes later.
        """
        took = stopwatch()
        template = Run(folder=self.folder, run_id=self.run_id, recipe=self.recipe)
        run = _copy(template, folder, self.run_id)
        kills, before, status = list[str](), list[list[Any]](), None
        for index, fault in enumerate(trial.faults):
            plan = Plan.write(run.folder / f"plan-{index}", fault)
            status = run.go(plan, again=index > 0)
            if status is not None:
                break  # it never came by so often, and is done
            kills.append(fault.point)
            before.append(forked(lambda: committed(run.home, run.run_id), run.log))
        if status is None:
            run.go(Plan.write(run.folder / "plan-last"), again=True)
        faults, left = forked(lambda: _verdict(run, self.facts, before), run.log)
        if run.recipe == "ray":
            end_all_of(run.folder)
        if not faults:
            shutil.rmtree(run.folder)
        return {"kills": kills, "faults": faults, "left": left, "seconds": took()}


def _verdict(
    run: Run, expected: Mapping[str, Any], before: Sequence[Any]
) -> tuple[Sequence[str], Sequence[str]]:
    verdict = judged(run.home, run.run_id, expected, before)
    return verdict.faults, verdict.left


def _copy(template: Run, folder: Path, run_id: str) -> Run:
    shutil.copytree(template.folder, folder)
    return Run(folder=folder, run_id=run_id, recipe=template.recipe)
