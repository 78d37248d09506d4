"""The local scores: sums over one client's held-out examples, task by task."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from clients.data import classes_of
from clients.model import AdaptedModel, completion_losses, generate, masked_cross_entropy
from strategies.protocols import ExampleIds
from strategies.recipe import SharedRecipe
from strategies.rng import rng_for
from strategies.types import Evaluation, Score

if TYPE_CHECKING:
    from clients.data import Dataset, Shard

BATCH_SIZE: Final = 64


@torch.no_grad()
def evaluate(
    model: AdaptedModel, dataset: Dataset, shard: Shard, plan: Evaluation, recipe: SharedRecipe
) -> tuple[Score, ...]:
    """One score per task with held-out examples.

    Classes of tasks not learnt yet are no answers.  A task none of whose classes is an answer is
    scored 0 correct without looking: it could not be otherwise.
    """
    model.module.eval()
    ids = {task: _sample(shard.test_ids(task), plan, recipe.seed, task) for task in plan.tasks}
    ids = {task: chosen for task, chosen in ids.items() if len(chosen)}
    if recipe.model.task == "causal-lm":
        return tuple(_generated(model, dataset, task, chosen) for task, chosen in ids.items())
    allowed = {task: _answers(dataset, plan, recipe, task) for task in ids}
    hopeless = {t for t in ids if not allowed[t][classes_of(dataset.tasks, [t])].any()}
    looked_at = np.concatenate(
        [np.zeros(0, dtype=np.int64), *(ids[t] for t in ids if t not in hopeless)]
    )
    correct, losses = _classified(model, dataset, looked_at, allowed)
    return tuple(
        Score(task_index=task, num_examples=len(chosen), num_correct=0, loss_sum=np.nan)
        if task in hopeless
        else _score(task, chosen, correct, losses)
        for task, chosen in ids.items()
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
    allowed = np.zeros(len(dataset.label_names), dtype=np.bool_)
    allowed[classes_of(dataset.tasks, tasks)] = True
    return allowed


def _classified(
    model: AdaptedModel, dataset: Dataset, ids: ExampleIds, allowed: dict[int, NDArray[np.bool_]]
) -> tuple[dict[int, bool], dict[int, float]]:
    correct, losses = dict[int, bool](), dict[int, float]()
    test = dataset.test
    for chunk in test.bucketed(ids, BATCH_SIZE):
        inputs = {name: torch.from_numpy(array) for name, array in test.collate(chunk).items()}
        labels = inputs["labels"]
        mask = torch.from_numpy(np.stack([allowed[int(task)] for task in test.tasks[chunk]]))
        logits = model.logits(inputs).float().masked_fill(~mask, -torch.inf)
        right = (logits.argmax(dim=-1) == labels).tolist()
        lost = masked_cross_entropy(logits, labels, mask).tolist()
        correct |= zip(chunk.tolist(), right, strict=True)
        losses |= zip(chunk.tolist(), lost, strict=True)
    return correct, losses


def _score(task: int, ids: ExampleIds, correct: dict[int, bool], losses: dict[int, float]) -> Score:
    return Score(
        task_index=task,
        num_examples=len(ids),
        num_correct=sum(correct[example] for example in ids.tolist()),
        loss_sum=sum(losses[example] for example in ids.tolist()),
    )


def _generated(model: AdaptedModel, dataset: Dataset, task: int, ids: ExampleIds) -> Score:
    """Exact match of greedily generated completions, and the completion loss."""
    test, num_correct, loss_sum = dataset.test, 0, 0.0
    for chunk in test.bucketed(ids, BATCH_SIZE):
        inputs = {name: torch.from_numpy(array) for name, array in test.collate(chunk).items()}
        loss_sum += float(completion_losses(model.logits(inputs), inputs["labels"]).sum())
        answers = generate(model, test, chunk)
        wanted = test.completion_texts(chunk)
        num_correct += sum(a.strip() == w.strip() for a, w in zip(answers, wanted, strict=True))
    return Score(task_index=task, num_examples=len(ids), num_correct=num_correct, loss_sum=loss_sum)
