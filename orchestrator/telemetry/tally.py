"""What has been read of one run, added up; pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.store.base import ScoreRecord
from orchestrator.store.tallies import Increment, Mark, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTally:
    """Sums over a run's committed steps up to ``mark``, and over its events up to ``event_id``."""

    mark: Mark | None = None
    event_id: int = 0
    events: Mapping[str, int] = field(default_factory=Counter)
    kinds: Mapping[str, int] = field(default_factory=Counter)
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    outcomes: Mapping[str | None, int] = field(default_factory=Counter)
    bytes_up: int = 0
    bytes_down: int = 0
    ranks: Mapping[int, int] = field(default_factory=Counter)
    scores: tuple[Score, ...] = ()
    loss: float | None = None
    truncation: Mapping[str, float] = field(default_factory=dict)

    def plus(self, new: Increment) -> RunTally:
        """With what ``new`` adds; of the steps, that alone if they were read anew."""
        base = RunTally(event_id=self.event_id, events=self.events) if new.anew else self
        seconds = defaultdict[str, float](float, base.phase_seconds)
        for step in new.steps:
            for phase, spent in step.seconds.items():
                seconds[phase] += spent
        return replace(
            base,
            mark=new.mark,
            event_id=new.event_id,
            events=Counter(base.events) + Counter(new.events),
            kinds=Counter(base.kinds) + Counter(step.kind for step in new.steps),
            phase_seconds=dict(seconds),
            outcomes=Counter(base.outcomes) + Counter(new.outcomes),
            bytes_up=base.bytes_up + new.bytes_up,
            bytes_down=base.bytes_down + new.bytes_down,
            ranks=Counter(base.ranks) + Counter(new.ranks),
            scores=(*base.scores, *new.scores),
            loss=base.loss if new.loss is None else new.loss,
            truncation=base.truncation if new.truncation is None else new.truncation,
        )

    def score_records(self) -> list[ScoreRecord]:
        """The cells of the accuracy matrix."""
        return [ScoreRecord(**score._asdict(), loss_sum=0.0) for score in self.scores]
