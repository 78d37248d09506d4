"""A step computed part by part: the same gradient, hooks once a step, and who cannot have it."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import torch

from clients.local_run import local_run, method_of
from clients.methods.base import ClientMethod
from clients.state_store import ClientState
from clients.training import train
from clients.workshop import shard_of
from strategies.catalog import CLIENT_METHODS, WHOLE_BATCH
from strategies.errors import ModelError
from strategies.protocols import ReplayMemory
from strategies.types import ClientFailure, StrategyChoice, Update
from tests.clients.test_trainer import lab

__all__ = ["lab"]  # a fixture


def cut(order, methods=(), **how):
    work = dataclasses.replace(
        order.assignment.work,
        methods=tuple(StrategyChoice(name=name) for name in methods),
        **how,
    )
    assignment = dataclasses.replace(order.assignment, work=work)
    return dataclasses.replace(order, assignment=assignment)


def answers(bench, run_id, methods, **how) -> list[Update]:
    """A client's answers over two rounds of the first task and one of the second."""
    return [bench.ask(cut(bench.plan(i, run_id).orders[2], methods, **how)) for i in (1, 2, 4)]


SPLIT = [["finetune"], ["er"], ["dmt"], ["agem"], ["er", "prox"], ["ewc"], ["hetlora"]]


@pytest.mark.parametrize("methods", SPLIT, ids=" ".join)
def test_parts_give_the_gradient_of_the_whole_batch(methods, lab):
    bench = lab()
    whole = answers(bench, "whole", methods)
    parts = answers(bench, "parts", methods, micro_batch_size=3, checkpointing=True)
    for one, other in zip(whole, parts, strict=True):
        assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-5)
        for name in ("new", "replayed", "memory"):
            assert other.metrics[name] == one.metrics[name]
        for key, value in one.delta.items():
            scale = np.abs(value).max()
            np.testing.assert_allclose(other.delta[key], value, atol=0.02 * scale, err_msg=key.text)


def test_recomputed_blocks_give_the_same_bits_and_keep_less(lab):
    bench = lab()
    (whole, *_), (again, *_) = (
        answers(bench, run_id, ["finetune"], checkpointing=on)
        for run_id, on in (("a", False), ("b", True))
    )
    for key, value in whole.delta.items():
        np.testing.assert_array_equal(again.delta[key], value)
    assert again.metrics["step_memory_bytes"] < whole.metrics["step_memory_bytes"]
    module = bench.trainer._workshops[bench.config.shared_recipe().model_dump_json()].model.module
    assert not any(getattr(m, "gradient_checkpointing", False) for m in module.modules())


class Counting(ClientMethod):
    """Counts its hooks, and the gradient's length when ``grad`` is called."""

    def __init__(self):
        self.calls, self.norms = [], []

    def batch(self, run, draw):
        self.calls.append("batch")
        return draw

    def grad(self, run):
        self.calls.append("grad")
        self.norms.append(sum(float(p.grad.square().sum()) for p in run.trainable.values()))

    def after_step(self, run):
        self.calls.append("after_step")


def test_hooks_are_called_once_a_step_on_the_whole_gradient(lab):
    bench = lab(learning__methods=[{"name": "finetune"}])
    norms = []
    for size in (None, 3):
        order = cut(bench.plan().orders[0], micro_batch_size=size)
        shop = bench.trainer._workshop(order.assignment.recipe)
        model = bench.trainer._assemble(shop, order.assignment, order.tensors)
        shop.model.apply(model, order.assignment.scale)
        state = ClientState(memory=ReplayMemory.empty(0))
        shard = shard_of(shop, order.assignment.client_id)
        run = local_run(shop, shard, order.assignment, order.assignment.work, state)
        method = Counting()
        train(run, [method])
        assert method.calls == ["batch", "grad", "after_step"] * run.work.steps
        norms.append(method.norms[0])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("name", sorted(WHOLE_BATCH))
def test_a_method_that_needs_whole_batches_refuses_parts_of_them(name, lab):
    bench = lab()
    answer = bench.ask(cut(bench.plan().orders[0], [name], micro_batch_size=3))
    assert isinstance(answer, ClientFailure)
    assert "needs whole batches" in answer.detail


def test_the_catalog_says_which_methods_need_whole_batches():
    found = set()
    for name, address in CLIENT_METHODS.items():
        module, _, attribute = address.partition(":")
        if not getattr(importlib.import_module(module), attribute).splits:
            found.add(name)
    assert found == WHOLE_BATCH


def test_a_model_without_such_blocks_says_so(lab):
    bench = lab()
    model = bench.trainer._workshop(bench.config.shared_recipe().model_dump_json()).model
    plain = dataclasses.replace(model.base, module=torch.nn.Linear(2, 2))
    model.base = plain
    with pytest.raises(ModelError, match="no blocks"):
        model.checkpoint(on=True)
    model.checkpoint(on=False)
    assert method_of(StrategyChoice(name="finetune")).splits
