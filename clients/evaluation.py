"""The local scores: sums over one client's held-out examples, task by task."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clients.data import class_mask, classes_of
from clients.flips import Answered, Flips, flips
from clients.model import AdaptedModel, completion_losses, generate, masked_cross_entropy
from clients.model.lower import Lower
from strategies.protocols import ExampleIds
from strategies.recipe import SharedRecipe
from strategies.rng import rng_for
from strategies.types import Evaluation, Score

if TYPE_CHECKING:
    from clients.data import Dataset, Shard

BATCH_SIZE: Final = 64


class Evaluated(NamedTuple):
    """The sums that leave the client, and the answers behind them, which do not."""

    scores: tuple[Score, ...]
    answered: Answered


@torch.no_grad()
def evaluate(
    model: AdaptedModel,
    dataset: Dataset,
    shard: Shard,
    plan: Evaluation,
    recipe: SharedRecipe,
    *,
    release: Answered | None = None,
) -> Evaluated:
    """One score per task with held-out examples, compared with the answers of ``release``.

    Classes of tasks not learnt yet are no answers.  A task none of whose classes is an answer is
    scored 0 correct without looking: it could not be otherwise.
    """
    model.module.eval()
    ids = {task: _sample(shard.test_ids(task), plan, recipe.seed, task) for task in plan.tasks}
    ids = {task: chosen for task, chosen in ids.items() if len(chosen)}
    if recipe.model.task == "causal-lm":
        marks = {task: _generated(model, dataset, chosen) for task, chosen in ids.items()}
    else:
        marks = _classified(model, dataset, ids, plan, recipe)
    scores = tuple(_score(task, *mark, release) for task, mark in marks.items())
    everything = [answered for answered, _ in marks.values()]
    return Evaluated(
        scores,
        Answered(
            ids=np.concatenate([np.zeros(0, dtype=np.int64), *(a.ids for a in everything)]),
            right=np.concatenate([np.zeros(0, dtype=np.bool_), *(a.right for a in everything)]),
        ),
    )


def _score(task: int, now: Answered, loss_sum: float, release: Answered | None) -> Score:
    flipped = flips(release, now) if release else Flips(0, 0, 0)
    return Score(
        task_index=task,
        num_examples=len(now.ids),
        num_correct=int(now.right.sum()),
        loss_sum=loss_sum,
        num_lost=flipped.lost,
        num_gained=flipped.gained,
        num_compared=flipped.compared,
    )


def _sample(ids: ExampleIds, plan: Evaluation, seed: int, task: int) -> ExampleIds:
    if plan.max_examples is None or len(ids) <= plan.max_examples:
        return ids
    return np.sort(rng_for(seed, "evaluation", task).permutation(ids)[: plan.max_examples])


def _answers(
    dataset: Dataset, plan: Evaluation, recipe: SharedRecipe, task: int
) -> NDArray[np.bool_]:
    """Which classes may be predicted for examples of ``task``, (C,)."""
    tasks: Collection[int] = plan.seen_tasks
    if recipe.stream.kind == "task-incremental":
        tasks = (task,)
    return class_mask(classes_of(dataset.tasks, tasks), len(dataset.label_names))


def _classified(
    model: AdaptedModel,
    dataset: Dataset,
    ids: dict[int, ExampleIds],
    plan: Evaluation,
    recipe: SharedRecipe,
) -> dict[int, tuple[Answered, float]]:
    """Per task, which of its examples are right, and the sum of their losses."""
    allowed = {task: _answers(dataset, plan, recipe, task) for task in ids}
    hopeless = {t for t in ids if not allowed[t][classes_of(dataset.tasks, [t])].any()}
    looked_at = np.concatenate(
        [np.zeros(0, dtype=np.int64), *(ids[t] for t in ids if t not in hopeless)]
    )
    sets = [ids[task] for task in ids if task not in hopeless]
    right, losses = _looked_at(model, dataset, looked_at, allowed, _lower(model, dataset, sets))
    return {
        task: (
            Answered(ids=chosen, right=np.zeros(len(chosen), dtype=np.bool_)),
            np.nan,
        )
        if task in hopeless
        else (
            Answered(ids=chosen, right=np.array([right[each] for each in chosen.tolist()])),
            sum(losses[each] for each in chosen.tolist()),
        )
        for task, chosen in ids.items()
    }


def _lower(model: AdaptedModel, dataset: Dataset, sets: list[ExampleIds]) -> Lower | None:
    """The part of the model that is still the base's own, on all ``sets``; None if there is none.

    Each set is computed by itself, so that its bits do not depend on what came before.
    """
    chunks = [chunk for ids in sets for chunk in dataset.test.bucketed(ids, BATCH_SIZE)]
    border = model.border(model.touched)
    return Lower.of(model, dataset.test, chunks, border=border)


def _looked_at(
    model: AdaptedModel,
    dataset: Dataset,
    ids: ExampleIds,
    allowed: dict[int, NDArray[np.bool_]],
    lower: Lower | None,
) -> tuple[dict[int, bool], dict[int, float]]:
    """By example, whether it is right, and its loss; the ``lower`` part is not computed again."""
    correct, losses = dict[int, bool](), dict[int, float]()
    test = dataset.test
    for chunk in test.bucketed(ids, BATCH_SIZE):
        inputs = model.device.inputs(test.collate(chunk))
        labels = inputs["labels"]
        rows = np.stack([allowed[int(task)] for task in test.tasks[chunk]])
        mask = model.device.tensor(rows)
        if lower:
            inputs |= lower.inputs(chunk)
        logits = model.logits(inputs).float().masked_fill(~mask, -torch.inf)
        right = (logits.argmax(dim=-1) == labels).tolist()
        lost = masked_cross_entropy(logits, labels, mask).tolist()
        correct |= zip(chunk.tolist(), right, strict=True)
        losses |= zip(chunk.tolist(), lost, strict=True)
    return correct, losses


def _generated(model: AdaptedModel, dataset: Dataset, ids: ExampleIds) -> tuple[Answered, float]:
    """Exact match of greedily generated completions, and the completion loss."""
    test, right, loss_sum = dataset.test, dict[int, bool](), 0.0
    for chunk in test.bucketed(ids, BATCH_SIZE):
        inputs = model.device.inputs(test.collate(chunk))
        loss_sum += float(completion_losses(model.logits(inputs), inputs["labels"]).sum())
        answers = generate(model, test, chunk)
        wanted = test.completion_texts(chunk)
        matches = [a.strip() == w.strip() for a, w in zip(answers, wanted, strict=True)]
        right |= zip(chunk.tolist(), matches, strict=True)
    return Answered(ids=ids, right=np.array([right[each] for each in ids.tolist()])), loss_sum
