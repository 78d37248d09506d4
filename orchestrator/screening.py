"""The replies of a step on their way to the aggregator: which of them count, and for how much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.config import RunConfig
from orchestrator.plans import SCREENING, Order, Plan
from orchestrator.transport import failure
from strategies.protocols import Contribution, Finding, Screener
from strategies.types import FailureReason, GlobalState, Reply, State, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An examined reply to ``order`` and what it contributes, None where it does not count.

    ``numbers`` are the screening's, for the reply's metrics.
    """

    order: Order
    reply: Reply
    contribution: Contribution | None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Screening:
    """The screening of one step.

    ``name`` is the screener's; ``notes`` are what is to be put on record once all have passed.
    What is remembered of replay rounds is kept apart: they move the model by other amounts.
    """

    name: str
    screener: Screener | None
    current: Tensors
    scale: float
    kind: str
    memory: State
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: RunConfig, state: GlobalState, plan: Plan) -> Screening:
        """As the run file asks for, for the step of ``plan`` that begins at ``state``."""
        kind = SCREENING if plan.step.kind == "train" else f"{SCREENING}-{plan.step.kind}"
        return cls(
            name=config.strategy.screening.name,
            screener=config.screener(),
            current=state.tensors,
            scale=config.adapter.scale,
            kind=kind,
            memory=state.memories.get(kind, {}),
        )

    def passed(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """The answers, in their order, with what is left of their contributions.

        Without a screener one by one as they come; else once all are there, and in memory.
        """
        if self.screener is None:
            yield from answers
            return
        waiting = list(answers)
        contributions = [a.contribution for a in waiting if a.contribution is not None]
        if not contributions:
            yield from waiting
            return
        screened = self.screener.screen(self.memory, self.current, contributions, self.scale)
        left = {contribution.client_id: contribution for contribution in screened.contributions}
        found = {finding.client_id: finding for finding in screened.findings}
        self.notes += [f"{self.name}: {note}" for note in screened.notes]
        self.notes += [
            f"{self.name}: {finding.client_id} {finding.action}: {finding.why}"
            for finding in screened.findings
            if finding.action != "kept"
        ]
        self.memory = screened.state
        for answer in waiting:
            finding = found.get(answer.order.assignment.client_id)
            yield answer if finding is None else _judged(answer, finding, left)

    def remembered(self, after: GlobalState) -> GlobalState:
        """``after`` with what the screener wants to remember."""
        if not self.memory:
            return after
        return replace(after, memories={**after.memories, self.kind: self.memory})


def _judged(answer: Answer, finding: Finding, left: Mapping[str, Contribution]) -> Answer:
    contribution, reply = left.get(finding.client_id), answer.reply
    if finding.action == "refused":
        reply = replace(reply, result=failure(answer.order, FailureReason.OUTLIER, finding.why))
    return replace(answer, reply=reply, contribution=contribution, numbers=finding.numbers)
