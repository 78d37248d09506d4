"""A run by its sums: all that pages and results need, and nothing that grows with its replies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from orchestrator.forgetting import explanation
from orchestrator.memory import in_words
from orchestrator.metrics import METRICS, AccuracyMatrix, by_client, worst_decile
from orchestrator.quarantine import Ward
from orchestrator.releases import described, verdicts
from orchestrator.sections import Quarantine, Requirements
from orchestrator.store.base import EventRecord, RoundRecord, RunRecord, ScoreRecord
from orchestrator.store.browsing import RunSums
from orchestrator.store.drift import DriftTable
from orchestrator.store.scores import ScoreTable
from orchestrator.store.totals import ClientTotals, StepRecord, added, step_of
from strategies.arrival import Arrivals, arrivals
from strategies.recipe import StreamRecipe
from strategies.types import client_ids

Json = dict[str, Any]  # parts of a document before NaN has become null


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A run and the scores of its accuracy matrix."""

    run: RunRecord
    table: ScoreTable

    @cached_property
    def when(self) -> Arrivals | None:
        """As ``arrivals_of``."""
        return arrivals_of(self.run)

    @cached_property
    def scores(self) -> Mapping[int, tuple[ScoreRecord, ...]]:
        """Those of the accuracy matrix by step: each client's where it matters who has met what."""
        return self.table.by_step() if self.when else self.table.pooled_by_step()

    @cached_property
    def matrix(self) -> AccuracyMatrix:
        """The run's accuracy matrix."""
        scores = [score for step in self.scores.values() for score in step]
        return AccuracyMatrix.of(scores, len(self.run.task_names), when=self.when)

    def headline(self) -> Json:
        """What runs are compared by."""
        return {
            "last_row": self.matrix.last_row,
            "average_accuracy": self.matrix.average_accuracy().tolist(),
            **{name: metric(self.matrix) for name, metric in METRICS.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Digest:
    """A run with its ``steps`` in order and its ``clients`` by id."""

    run: RunRecord
    steps: Sequence[StepRecord]
    clients: Sequence[ClientTotals]
    table: ScoreTable

    @classmethod
    def of(cls, run: RunRecord, rounds: Iterable[RoundRecord]) -> Digest:
        """The digest of a run that is read whole; ``rounds`` are read once and none is kept."""
        steps, scored, clients = list[StepRecord](), list[RoundRecord](), dict[str, ClientTotals]()
        for record in rounds:
            steps.append(step_of(record))
            scored.append(replace(record, replies=()))
            asked = {reply.client_id for reply in record.replies}
            clients |= added({c: clients[c] for c in asked if c in clients}, [record])
        return cls(
            run=run,
            steps=steps,
            clients=[clients[client] for client in sorted(clients)],
            table=ScoreTable.of_rounds(scored),
        )

    @classmethod
    def by_sums(cls, sums: RunSums) -> Digest:
        """The digest of what the store has summed."""
        return cls(run=sums.run, steps=sums.steps, clients=sums.clients, table=sums.scores)

    @cached_property
    def scoring(self) -> Scoring:
        """Its scores, and the accuracy matrix they make."""
        return Scoring(run=self.run, table=self.table)

    @property
    def matrix(self) -> AccuracyMatrix:
        """The run's accuracy matrix."""
        return self.scoring.matrix

    @cached_property
    def own(self) -> Mapping[str, AccuracyMatrix]:
        """Every scored client's matrix, judged at the last row that the run has reached."""
        num_tasks, last = len(self.run.task_names), self.matrix.last_row
        if when := self.scoring.when:
            scores = [score for step in self.scoring.scores.values() for score in step]
            return by_client(scores, num_tasks, when)
        found = self.table.matrices(num_tasks + 1, num_tasks)
        return {client: AccuracyMatrix(values, last) for client, values in found.items()}

    @cached_property
    def ward(self) -> Ward:
        """Who is in quarantine after the last step, by the run's own rule."""
        rule = self.run.config.get("federation", {}).get("quarantine")
        ward = Ward(rule=Quarantine.model_validate(rule) if rule else None)
        for step in self.steps:
            ward = ward.told(step.record.kind, step.totals.failures)
        return ward

    def results(self, drift: DriftTable) -> Json:
        """What a run has come to: scores, forgetting, bytes; ``drift`` is its own."""
        matrix = self.matrix
        accs = [each.acc() for each in self.own.values()]
        losses = [each.forgetting() for each in self.own.values()]
        return {
            "arrival": _arrival(self.run),
            "tasks_learnt": matrix.num_learnt,
            **self.scoring.headline(),
            "learnt_at": matrix.rows.tolist(),
            "accuracy_matrix": matrix.values.tolist(),
            "forgetting_per_task": matrix.forgetting_per_task().tolist(),
            "acc_over_clients": {"mean": _mean(accs), "worst_decile": worst_decile(accs)},
            "forgetting_over_clients": {
                "mean": _mean(losses),
                "worst_decile": -worst_decile([-lost for lost in losses]),
            },
            "forgetting_explained": explanation(
                [step.totals for step in self.steps], drift, matrix, self.own
            ),
            "bytes_up": sum(step.totals.bytes_up for step in self.steps),
            "bytes_down": sum(step.totals.bytes_down for step in self.steps),
        }

    def releases(self, events: Sequence[EventRecord]) -> list[Json]:
        """Judged anew from the scores, by what the run file asks for."""
        require = Requirements.model_validate(self.run.config.get("publish", {}).get("require", {}))
        scores = self.scoring.scores
        records = [
            replace(step.record, scores=scores.get(step.record.step_index, ()))
            for step in self.steps
            if step.record.kind == "evaluate" or step.record.step_index in scores
        ]
        found = verdicts(records, require, self.run.task_names, self.scoring.when)
        return described(records, found, events, len(self.run.task_names))

    def client_rows(self) -> list[Json]:
        """Every client that was ever asked."""
        kept = {str(client): stay.why for client, stay in self.ward.stays.items()}
        return [
            {**_client(each, self.own.get(each.client_id)), "quarantine": kept.get(each.client_id)}
            for each in self.clients
        ]


def step_row(step: StepRecord) -> Json:
    """One committed step without its replies."""
    record, totals = step.record, step.totals
    examples = totals.mid_examples
    return {
        "step": record.step_index,
        "kind": record.kind,
        "task": record.task_index,
        "round": record.round_index,
        "committed_at": record.committed_at.isoformat(),
        "loss": record.metrics.get("loss"),
        "seconds": dict(record.seconds),
        "client_seconds": dict(totals.seconds),
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "clients_ok": totals.clients_ok,
        "clients_failed": totals.clients_failed,
        "truncation_max": totals.truncation_max,
        "drift": dict(record.drift),
        "replayed": totals.replayed,
        "accuracy": totals.mid_correct / examples if examples else None,
        "staleness": totals.staleness,
        "intruders": record.metrics.get("intruders"),
    }


def _client(totals: ClientTotals, own: AccuracyMatrix | None) -> Json:
    return {
        "client_id": totals.client_id,
        "kind": totals.kind,
        "rounds": totals.rounds,
        "num_examples": totals.num_examples,
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "seconds": totals.seconds.get("compute", 0.0),
        "failures": totals.failed,
        "failure_reasons": sorted(totals.failures),
        "acc": own.acc() if own else None,
        "forgetting": own.forgetting() if own else None,
        "peak_memory_bytes": totals.peak_memory_bytes,
        "ranks": dict(totals.last_ranks),
        "memory_plan": in_words(totals.last_metrics, totals.last_peak_memory_bytes),
    }


def arrivals_of(run: RunRecord) -> Arrivals | None:
    """When each client meets each task; None where all meet the same at once."""
    if _arrival(run) == "together" or not run.task_names:
        return None
    recipe = StreamRecipe.model_validate(run.config["stream"])
    clients = client_ids(run.config["federation"]["clients"])
    return arrivals(recipe, clients, len(run.task_names), run.config["seed"])


def _arrival(run: RunRecord) -> str:
    """``together`` for runs from before there was a choice."""
    return str(run.config.get("stream", {}).get("arrival", "together"))


def _mean(values: Sequence[float]) -> float | None:
    """Of what was measured."""
    measured = [value for value in values if math.isfinite(value)]
    return sum(measured) / len(measured) if measured else None
