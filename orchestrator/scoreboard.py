"""The scorings of a run under way, in memory, so that no step reads the whole record again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from orchestrator.store.base import RoundRecord, ScoreRecord
from orchestrator.store.scores import ScoreTable
from strategies.arrival import Arrivals


@dataclass(slots=True)
class Scoreboard:
    """What metrics and verdicts are read off: the committed evaluations, without their replies.

    Scores are summed over clients, which says the same of the run as a whole, unless ``when`` tells
    that clients do not all meet the same task at once: then it matters whose they are.
    """

    when: Arrivals | None = None
    scorings: list[RoundRecord] = field(default_factory=list)

    def note(self, record: RoundRecord) -> None:
        """Take up a committed step; one that is no evaluation has nothing for the matrix."""
        if record.kind == "evaluate":
            kept = replace(record, replies=(), events=(), scores=self._kept(record))
            self.scorings.append(kept)

    def _kept(self, record: RoundRecord) -> tuple[ScoreRecord, ...]:
        if self.when:
            return record.scores
        return ScoreTable.of_rounds([record]).pooled_by_step().get(record.step_index, ())
