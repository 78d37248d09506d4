"""One process of a run from its start to its end or death, in this process's forks or on Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from orchestrator.config import parse_config
from orchestrator.deployment.flower import QUIET
from orchestrator.home import Home
from orchestrator.launch import run_in_process
from orchestrator.store.base import RunStatus
from tests.chaos.faults import Plan
from tests.chaos.forking import forked
from tests.chaos.letters import run_over_letters
from tests.chaos.wrapping import VARIABLE, follow
from tests.conftest import REPOSITORY

_RAY_SECONDS: Final = 900.0
_RAY_STARTS: Final = 3
_SITE: Final = REPOSITORY / "tests" / "chaos" / "site"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A submitted run in a data directory of its own."""

    folder: Path
    run_id: str
    recipe: str

    @property
    def home(self) -> Home:
        """Its data directory and database."""
        folder = self.folder / "home"
        return Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.folder / "log"

    def go(self, plan: Plan, *, again: bool) -> str | None:
        """Begin the run, or resume it, and follow ``plan``; its status, None if it was killed."""
        if self.recipe != "ray":
            return forked(lambda: self._here(plan, again=again), self.log)
        if again and forked(lambda: self._reclaimed(plan), self.log) is None:
            return None
        return self._on_ray(plan)

    def _here(self, plan: Plan, *, again: bool) -> str:
        follow(plan)
        run_id, home = self.run_id, self.home
        if again and self._reclaimed(plan) == RunStatus.COMPLETED:
            return RunStatus.COMPLETED
        config = parse_config(home.store().get_run(run_id).config)
        if self.recipe == "letters":
            status = run_over_letters(run_id, config, home)
        else:
            status = run_in_process(run_id, config, home, on_progress=lambda: None)
        (plan.folder / "modules").write_text("\n".join(sorted(sys.modules)), encoding="utf-8")
        return str(status)

    def _reclaimed(self, plan: Plan) -> str:
        """What `perennial resume` does first; nothing for a run that was killed after its end."""
        follow(plan)
        store = self.home.store()
        if store.get_run(self.run_id).status is RunStatus.COMPLETED:
            return str(RunStatus.COMPLETED)
        from orchestrator import conduct  # by its name there: it is wrapped

        return str(conduct.reclaim(self.run_id, store).status)

    def _on_ray(self, plan: Plan) -> str | None:
        """On a busy machine Ray may not come up within its own time; the run is begun anew then."""
        for _ in range(_RAY_STARTS - 1):
            try:
                return self._simulated(plan)
            except ChildProcessError:
                if plan.struck() or not self._never_came_up():
                    raise
        return self._simulated(plan)

    def _never_came_up(self) -> bool:
        return "timed out during startup" in self.log.read_text(errors="replace")[-20_000:]

    def _simulated(self, plan: Plan) -> str | None:
        paths = os.pathsep.join([str(_SITE), str(REPOSITORY)])
        ours = {VARIABLE: str(plan.folder), "PYTHONPATH": paths}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.child", self.run_id, "ray"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | QUIET | self.home.environment() | ours,
                start_new_session=True,
            )
        plan.started(process.pid)
        try:
            code = process.wait(_RAY_SECONDS)
        finally:
            _end(process)
        if code == -9:
            return None
        if code != 0:
            raise ChildProcessError(f"ended with code {code}; see {self.log}")
        return str(forked(lambda: str(self.home.store().get_run(self.run_id).status)))


def end_all_of(folder: Path) -> None:
    """End whatever Ray started for the runs of a folder and has outlived them."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(VARIABLE, "").startswith(f"{folder}{os.sep}"):
                process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
