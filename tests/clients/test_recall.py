"""Retrieval and losses of the memory, on a real model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clients.local_run import local_run as prepared
from clients.recall import interference, losses_on, measured, recalled
from clients.workshop import shard_of
from strategies.protocols import ReplayMemory
from strategies.replay.mir import MaximallyInterfered
from strategies.types import HEAD, ParamKey, Update
from tests.clients.test_trainer import IDS, lab

__all__ = ["lab"]  # a fixture

CLIENT = IDS[2]


def local_run(bench, **work_changes):
    """The third client about to train on the second task, with eight examples of the first."""
    order = next(o for o in bench.plan(4).orders if o.assignment.client_id == CLIENT)
    shop = bench.trainer._workshop(order.assignment.recipe)
    shop.model.apply(order.tensors | {}, order.assignment.scale)
    shard = shard_of(shop, CLIENT)
    work = dataclasses.replace(order.assignment.work, **work_changes)
    state = bench.trainer._load(order.assignment, shop, shard)
    ids = shard.train_ids(0)[:8]
    memory = dataclasses.replace(
        ReplayMemory.empty(10),
        ids=ids,
        tasks=np.zeros(8, np.int64),
        labels=shop.dataset.train.labels[ids].astype(np.int64),
        losses=np.full((8, 2), np.nan),
    )
    state = dataclasses.replace(state, memory=memory)
    model = bench.trainer._assemble(shop, order.assignment, order.tensors)
    shop.model.apply(model, order.assignment.scale)
    return prepared(shop, shard, order.assignment, work, state)


def test_interference_is_the_change_a_step_would_make(lab):
    run = local_run(lab())
    memory, new = run.state.memory.ids, run.new_ids[:6]
    before = {key: p.detach().clone() for key, p in run.trainable.items()}
    found = interference(run, new, memory)
    assert all(torch.equal(run.trainable[key], value) for key, value in before.items())
    start = losses_on(run, memory)
    from clients.model import example_losses

    loss = example_losses(run.model, run.tensors_of(new), run.allowed).mean()
    gradients = torch.autograd.grad(loss, list(run.trainable.values()), allow_unused=True)
    plan = run.work.optimization
    with torch.no_grad():
        for (key, parameter), gradient in zip(run.trainable.items(), gradients, strict=True):
            rate = plan.head_learning_rate if key.group == HEAD else plan.learning_rate
            parameter -= rate * (0 if gradient is None else gradient)
    np.testing.assert_allclose(found, losses_on(run, memory) - start, atol=1e-6)
    assert np.abs(found).max() > 1e-4


def test_without_a_step_nothing_interferes(lab):
    run = local_run(lab())
    run.rate_factor = 0.0
    assert not interference(run, run.new_ids[:6], run.state.memory.ids).any()


def test_mir_recalls_the_most_interfered_of_its_candidates(lab):
    run = local_run(lab())
    run.policy = MaximallyInterfered(candidates=8)
    new = run.new_ids[:6]
    chosen = recalled(run, new, 3)
    order = np.argsort(-interference(run, new, run.state.memory.ids))
    assert set(chosen.tolist()) == set(run.state.memory.ids[order[:3]].tolist())
    assert len(recalled(run, new, 20)) == 8
    assert not len(recalled(run, new, 0))


def test_a_measured_memory_reports_sums_alone(lab):
    run = local_run(lab())
    memory, sums = measured(run)
    losses = losses_on(run, memory.ids)
    np.testing.assert_allclose(memory.losses[:, 1], losses)
    (first,) = sums
    assert (first.task_index, first.num_examples) == (0, 8)
    assert first.loss_sum == pytest.approx(losses.sum())
    assert first.loss_rise == 0.0


def test_a_replay_round_trains_what_it_is_told_on_the_memory_alone(lab):
    bench = lab()
    for index in (1, 2):
        for order in bench.plan(index).orders:
            bench.ask(order)
    order = next(o for o in bench.plan(4).orders if o.assignment.client_id == CLIENT)
    work = dataclasses.replace(order.assignment.work, methods=(), source="memory", tasks=(0,))
    head = {HEAD: order.assignment.groups[HEAD]}
    assignment = dataclasses.replace(order.assignment, work=work, groups=head)
    update = bench.ask(dataclasses.replace(order, assignment=assignment))
    assert isinstance(update, Update)
    assert {key.group for key in update.delta} == {HEAD}
    assert update.metrics["replayed"] == work.steps * min(8, update.metrics["memory"])
    assert not update.delta[ParamKey(HEAD, "weight")][5:].any()  # classes of the second task


def test_a_replay_round_pushes_no_class_down_that_is_not_remembered(lab):
    bench = lab(replay__examples_per_client=3)
    for index in (1, 2):
        for order in bench.plan(index).orders:
            bench.ask(order)
    order = next(o for o in bench.plan(4).orders if o.assignment.client_id == CLIENT)
    work = dataclasses.replace(order.assignment.work, methods=(), source="memory", tasks=(0,))
    shop = bench.trainer._workshop(order.assignment.recipe)
    shard = shard_of(shop, CLIENT)
    state = bench.trainer._load(order.assignment, shop, shard)
    allowed = prepared(shop, shard, order.assignment, work, state).allowed
    assert set(torch.nonzero(allowed).flatten().tolist()) == set(state.memory.labels.tolist())
    on_task = prepared(shop, shard, order.assignment, order.assignment.work, state).allowed
    assert int(on_task.sum()) > int(allowed.sum())


def test_an_empty_memory_has_nothing_to_replay(lab):
    bench = lab()
    order = bench.plan(1).orders[0]
    work = dataclasses.replace(order.assignment.work, methods=(), source="memory")
    failure = bench.ask(
        dataclasses.replace(order, assignment=dataclasses.replace(order.assignment, work=work))
    )
    assert failure.reason == "no-examples"
    assert "memory" in failure.detail


@pytest.mark.parametrize(("method", "logits"), [("er", 0), ("derpp", 10)])
def test_a_memory_of_bytes_holds_as_many_examples_as_they_pay_for(method, logits, lab):
    bench = lab(replay__bytes_per_client=3000, learning__methods=[{"name": method}])
    order = bench.plan(1).orders[0]
    bench.ask(order)
    shop = bench.trainer._workshop(order.assignment.recipe)
    state = bench.trainer._load(bench.plan(2).orders[0].assignment, shop, shard_of(shop, IDS[0]))
    assert state.memory.capacity == 3000 // (8 * 8 * 4 + 8 + 4 * logits)  # pixels and a label
