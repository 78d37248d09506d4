"""What figures are drawn from: parts of the documents of ``orchestrator.results``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from orchestrator.store.base import RoundKind


class Scored(TypedDict):
    """The accuracy matrix and how to read it, as ``Show`` has them."""

    tasks: list[str]
    arrival: str
    learnt_at: list[int]
    accuracy_matrix: list[list[float | None]]
    average_accuracy: list[float | None]


class StepCosts(TypedDict):
    """What a committed step took, as ``ShownRound`` has it."""

    kind: RoundKind
    task: int
    seconds: dict[str, float | None]
    bytes_up: int
    bytes_down: int


class StepTotals(StepCosts):
    """A committed step without its replies, as ``ShownRound`` has it."""

    step: int
    loss: float | None
    client_seconds: dict[str, float | None]
    truncation_max: float | None


class StepMark(NamedTuple):
    """Which step a bar stands for."""

    step: int
    kind: RoundKind
    task: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A run of a comparison; ``average_accuracy`` has an entry per row of the matrix but the first.

    ``name`` tells it from the others.
    """

    name: str
    average_accuracy: Sequence[float | None]
    last_row: int
    steps: Sequence[StepCosts]
