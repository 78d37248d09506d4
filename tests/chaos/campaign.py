"""All trials of one call of the tool, and the report of them."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.chaos.choosing import trials
from tests.chaos.forking import in_parallel, stopwatch
from tests.chaos.points import Point
from tests.chaos.trials import Golden, Trial


@dataclass(slots=True, kw_only=True)
class Campaign:
    """``jobs`` trials at a time in ``folder``, begun within ``minutes`` if that is given."""

    folder: Path
    seed: int
    jobs: int
    minutes: float | None
    results: list[tuple[Trial, dict[str, Any]]] = field(default_factory=list)

    def carried_out(
        self, recipes: Sequence[str], points: Sequence[Point], kills: int | None
    ) -> dict[str, Any]:
        """The report of all trials that had the time."""
        took = stopwatch()
        goldens = dict[str, Golden]()
        for name in recipes:
            goldens[name] = Golden.of(name, self.folder, self.seed)
            self._say(f"{name}: a run takes {goldens[name].seconds:.1f} s")
        chosen = list(enumerate(trials(goldens, points, kills, self.seed)))
        self._say(f"{len(chosen)} trials")

        def in_time() -> Iterator[tuple[int, Trial]]:
            for numbered in chosen:
                if self.minutes is not None and took() > 60 * self.minutes:
                    return
                yield numbered

        def tried(numbered: tuple[int, Trial]) -> dict[str, Any]:
            index, trial = numbered
            return goldens[trial.recipe].tried(trial, self.folder / f"trial-{index}")

        for (index, trial), result in in_parallel(self.jobs, in_time(), tried):
            self.results.append((trial, result))
            said = "; ".join(result["faults"]) or "identical"
            self._say(f"{index + 1}/{len(chosen)} {trial}: {said} ({result['seconds']:.1f} s)")
        return self._report(goldens, points, took())

    def _report(
        self, goldens: dict[str, Golden], points: Sequence[Point], seconds: float
    ) -> dict[str, Any]:
        kills, same, recipes, left = Counter[str](), Counter[str](), {}, set[str]()
        for trial, result in self.results:
            kills.update(result["kills"])
            where = recipes.setdefault(trial.recipe, {"trials": 0, "kills": 0, "identical": 0})
            where["trials"] += 1
            where["kills"] += len(result["kills"])
            left |= {path.split("/")[0] for path in result["left"]}
            if not result["faults"]:
                same.update(result["kills"])
                where["identical"] += len(result["kills"])
        faults = [{"trial": str(t), "faults": r["faults"]} for t, r in self.results if r["faults"]]
        if not faults:
            shutil.rmtree(self.folder)
        return {
            "kills": kills.total(),
            "identical": same.total(),
            "trials": len(self.results),
            "per_point": {
                name: {"kills": count, "identical": same[name]}
                for name, count in sorted(kills.items())
            },
            "per_run": recipes,
            "runs": {name: _about(golden) for name, golden in goldens.items()},
            "never_come_by": self._missed(goldens, points, kills),
            "same_on_ray": _same(goldens),
            "temporary_files_left_for_gc_in": sorted(left),
            "faults": faults,
            "seed": self.seed,
            "seconds": round(seconds, 1),
            "environment": _environment(),
        }

    def _missed(
        self, goldens: dict[str, Golden], points: Sequence[Point], kills: Counter[str]
    ) -> list[str]:
        """Points that no run came by, which may mean that the product has changed."""
        found = kills.keys() | {name for golden in goldens.values() for name in golden.counts}
        return [point.name for point in points if point.name not in found]

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def _about(golden: Golden) -> dict[str, Any]:
    steps = [kind for _, kind, *_ in golden.facts["steps"]]
    return {"steps": steps, "seconds": round(golden.seconds, 1), "points": len(golden.counts)}


def _same(goldens: dict[str, Golden]) -> bool | None:
    """Whether Ray's run and that in this process gave the same states; None without both."""
    if not {"golden", "ray"} <= goldens.keys():
        return None
    return bool(goldens["golden"].facts["checkpoints"] == goldens["ray"].facts["checkpoints"])


def _environment() -> dict[str, Any]:
    packages = ("torch", "flwr", "ray", "numpy", "safetensors", "sqlalchemy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        **{name: version(name) for name in packages},
    }
