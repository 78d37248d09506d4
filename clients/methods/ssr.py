"""SSR: where the model's own answer will do, it is the one to learn."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from clients.methods.base import ClientMethod
from clients.model import generated
from clients.state_store import Targets
from strategies.errors import ModelError

if TYPE_CHECKING:
    from clients.training import LocalRun
    from strategies.protocols import ExampleIds

BATCH_SIZE: Final = 64


@dataclass(frozen=True, slots=True)
class SelectiveSelfTargets(ClientMethod):
    """The received model answers every new prompt; what ``agrees`` accepts becomes the target.

    Training on an answer the model would give itself moves it less than training on the reference.
    Answers are greedy, given once per task and kept for its later rounds; examples replayed in a
    later task come with their references.  One that does not end within ``model.max_new_tokens`` or
    not fit ``model.max_length`` is not accepted.  For causal LMs.
    Source: SSR, arXiv 2409.04787; departs: the judge is ``agrees``, not a language model, for it
    must run on the client.
    """

    agreement: Annotated[float, Gt(0), Le(1)] = 0.5

    def task_start(self, run: LocalRun) -> None:
        if run.recipe.task != "causal-lm":
            raise ModelError(
                f"client method 'ssr' needs model.task = 'causal-lm', found {run.recipe.task!r}; "
                "a class has no other wording"
            )
        run.model.module.eval()
        answers = dict[int, NDArray[np.int64]]()
        for chunk in run.dataset.train.bucketed(run.new_ids, BATCH_SIZE):
            answers |= self._accepted(run, chunk)
        run.state = replace(run.state, targets=_padded(answers))

    def _accepted(self, run: LocalRun, ids: ExampleIds) -> dict[int, NDArray[np.int64]]:
        """The tokens (t,) of every acceptable answer, its end token last."""
        split, accepted = run.dataset.train, dict[int, NDArray[np.int64]]()
        tokens, room = generated(run.model, split, ids), run.recipe.max_length
        rows = zip(
            ids.tolist(),
            tokens,
            split.decode(tokens),
            split.completion_texts(ids),
            (room - split.prompt_lengths(ids)).tolist(),
            strict=True,
        )
        for example, row, text, reference, left in rows:
            ends = np.flatnonzero(row == split.tokenizer.eos_id)
            if len(ends) and ends[0] < left and agrees(text, reference, self.agreement):
                accepted[example] = row[: ends[0] + 1]
        return accepted


def agrees(answer: str, reference: str, agreement: float) -> bool:
    """Whether ``answer`` says what ``reference`` says, by their words without case and punctuation.

    The F1 of the words they share must be at least ``agreement``; where the reference is a single
    word, the answer must end in it.
    """
    said, wanted = (re.findall(r"\w+", text.casefold()) for text in (answer, reference))
    if not wanted or (len(wanted) == 1 and said[-1:] != wanted):
        return False
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted)) >= agreement


def _padded(answers: dict[int, NDArray[np.int64]]) -> Targets:
    width = max(map(len, answers.values()), default=0)
    tokens = np.full((len(answers), width), -1, dtype=np.int64)
    for row, example in zip(tokens, sorted(answers), strict=True):
        row[: len(answers[example])] = answers[example]
    return Targets(ids=np.array(sorted(answers), dtype=np.int64), tokens=tokens)
