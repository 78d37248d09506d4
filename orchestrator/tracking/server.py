"""An MLflow server: one of its runs for each of ours, found again by a tag."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from orchestrator.sections import Tracking
from orchestrator.store.base import RunRecord, RunStatus
from orchestrator.tracking.points import params_of

URL_VARIABLE: Final = "MLFLOW_TRACKING_URI"
_RUN, _THROUGH = "perennial.run_id", "perennial.mirrored_through"
_PARAMS_AT_ONCE: Final = 100  # by MLflow
_STATUSES: Final = {
    RunStatus.COMPLETED: "FINISHED",
    RunStatus.FAILED: "FAILED",
    RunStatus.INTERRUPTED: "KILLED",
}
# MLflow's own: no telemetry, and an answer within seconds or none.
_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}


class Point(NamedTuple):
    """A number of a step; ``at`` is when it was committed."""

    name: str
    value: float
    step: int
    at: datetime


class Tracker(Protocol):
    """A tracking server, as far as one run goes.  Every call may raise anything."""

    def begin(self, run: RunRecord) -> int:
        """Find the run there, or make it; the newest step it has, −1 for none."""
        ...

    def log(self, points: Sequence[Point], through: int) -> None:
        """Add the numbers of the steps up to ``through``, and that it has them, in one go."""
        ...

    def end(self, run: RunRecord, files: Mapping[str, Path]) -> None:
        """Add files and folders by the name they get there, and how the run stands."""
        ...


def url_of(tracking: Tracking) -> str | None:
    """The server's address, by the run file or the environment."""
    return tracking.url or os.environ.get(URL_VARIABLE)


@dataclass(slots=True)
class MlflowServer:
    """A Tracker; the number of the newest step is kept there, in a tag beside the numbers."""

    tracking: Tracking
    _client: Any = None  # an MlflowClient; the library is untyped here
    _run_id: str = ""

    def begin(self, run: RunRecord) -> int:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=url_of(self.tracking))
        found = self._found(run) or self._made(run)
        self._run_id = found.info.run_id
        self._tell_params(params_of(run))
        self._client.update_run(self._run_id, status="RUNNING")
        return int(found.data.tags.get(_THROUGH, -1))

    def log(self, points: Sequence[Point], through: int) -> None:
        from mlflow.entities import Metric, RunTag

        metrics = [
            Metric(point.name, point.value, int(point.at.timestamp() * 1000), point.step)
            for point in points
        ]
        self._client.log_batch(self._run_id, metrics=metrics, tags=[RunTag(_THROUGH, str(through))])

    def end(self, run: RunRecord, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            send(self._run_id, str(path), name)
        if status := _STATUSES.get(run.status):
            self._client.set_terminated(self._run_id, status)

    def _found(self, run: RunRecord) -> Any:
        wanted = f"tags.`{_RUN}` = '{run.run_id}'"
        return next(
            iter(self._client.search_runs([self._experiment()], wanted, max_results=1)), None
        )

    def _made(self, run: RunRecord) -> Any:
        began = int(run.created_at.timestamp() * 1000)
        tags = {_RUN: run.run_id}
        return self._client.create_run(
            self._experiment(), start_time=began, tags=tags, run_name=run.name
        )

    def _experiment(self) -> str:
        name = self.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _tell_params(self, params: Mapping[str, str]) -> None:
        """Params cannot change; telling the same ones again is fine."""
        from mlflow.entities import Param

        all_params = [Param(key, value) for key, value in sorted(params.items())]
        for at in range(0, len(all_params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=all_params[at : at + _PARAMS_AT_ONCE])
