"""What a tracking server is told of a run, read off its records; pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from orchestrator.digest import arrivals_of
from orchestrator.metrics import METRICS, AccuracyMatrix
from orchestrator.store.base import RoundRecord, RunRecord, ScoreRecord
from orchestrator.summary import flattened

_LONGEST_PARAM: Final = 6000  # characters, by MLflow


def params_of(run: RunRecord) -> dict[str, str]:
    """The run file's leaves by dotted key, and what the run was made of."""
    leaves = {key: _text(value) for key, value in flattened(run.config) if value is not None}
    made_of = {"config_digest": run.config_digest, "code_version": run.code_version}
    return {key: text[:_LONGEST_PARAM] for key, text in (leaves | made_of).items()}


def metrics_of(record: RoundRecord) -> dict[str, float]:
    """A step's numbers by name, finite ones only."""
    failed = sum(reply.status == "failed" for reply in record.replies)
    found = {
        **{f"{record.kind}/{name}": value for name, value in record.metrics.items()},
        **{f"seconds/{phase}": spent for phase, spent in record.seconds.items()},
        "bytes/up": sum(reply.bytes_up for reply in record.replies),
        "bytes/down": sum(reply.bytes_down for reply in record.replies),
        "clients/ok": len(record.replies) - failed,
        "clients/failed": failed,
    }
    if record.truncation:
        found["truncation_max"] = max(record.truncation.values())
    return _finite(found)


def matrix_of(run: RunRecord, scores: Sequence[ScoreRecord]) -> dict[str, float]:
    """The newest row of the accuracy matrix, what each task has lost, and the headline metrics."""
    matrix = AccuracyMatrix.of(scores, len(run.task_names), when=arrivals_of(run))
    row, lost = matrix.values[matrix.last_row], matrix.forgetting_per_task()
    return _finite(
        {
            **{name: metric(matrix) for name, metric in METRICS.items()},
            **{f"accuracy/task_{task}": value for task, value in enumerate(row)},
            **{f"forgetting/task_{task}": value for task, value in enumerate(lost)},
        }
    )


def _text(value: Any) -> str:  # any JSON value
    return value if isinstance(value, str) else json.dumps(value)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
