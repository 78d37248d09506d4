"""What has been read of one run, added up; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.store.scores import ScoreTable
from orchestrator.store.tallies import Increment, Mark, Newest
from orchestrator.store.totals import summed


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
    scores: ScoreTable = field(default_factory=lambda: ScoreTable.of(()))
    newest: Newest | None = None

    def plus(self, new: Increment) -> RunTally:
        """With what ``new`` adds; of the steps, that alone if they were read anew."""
        base = RunTally(event_id=self.event_id, events=self.events) if new.anew else self
        return replace(
            base,
            mark=new.mark,
            event_id=new.event_id,
            events=Counter(base.events) + Counter(new.events),
            kinds=Counter(base.kinds) + Counter(new.kinds),
            phase_seconds=summed([base.phase_seconds, new.seconds]),
            outcomes=Counter(base.outcomes) + Counter(new.outcomes),
            bytes_up=base.bytes_up + new.bytes_up,
            bytes_down=base.bytes_down + new.bytes_down,
            ranks=Counter(base.ranks) + Counter(new.ranks),
            scores=base.scores.plus(new.scores),
            newest=new.newest or base.newest,
        )
