"""Client methods: their formulas by hand, and what they do in a real local training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clients.methods.agem import project
from clients.methods.dft import weighted_completion_losses
from clients.methods.lwf import distillation
from clients.model import completion_losses
from clients.state_store import ClientStateStore
from strategies.catalog import CLIENT_METHODS, REMEMBERING
from strategies.types import ClientFailure, StrategyChoice, Update
from tests.clients.test_trainer import IDS, lab

__all__ = ["lab"]  # a fixture


def trained(bench, *methods, step=4, run_id="run", **params) -> Update:
    """The third client's answer after two rounds of the first task, with ``methods``."""
    choices = tuple(StrategyChoice(name=name, params=params) for name in methods)
    for index in sorted({1, 2, step}):
        order = bench.plan(index, run_id).orders[2]
        work = dataclasses.replace(order.assignment.work, methods=choices)
        assignment = dataclasses.replace(order.assignment, work=work)
        answer = bench.ask(dataclasses.replace(order, assignment=assignment))
    return answer


def same(one: Update, other: Update) -> bool:
    return all(np.array_equal(value, other.delta[key]) for key, value in one.delta.items())


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("prox", {"mu": 0.0}),
        ("derpp", {"alpha": 0.0, "beta": 0.0}),
        ("lwf", {"alpha": 0.0}),
    ],
)
def test_a_method_without_weight_is_finetuning(name, off, lab):
    bench = lab()
    plain, idle = trained(bench, "finetune", run_id="a"), trained(bench, name, run_id="b", **off)
    assert same(plain, idle)


@pytest.mark.parametrize("name", ["prox", "derpp", "agem", "lwf"])
def test_a_method_changes_what_is_learnt_of_a_second_task(name, lab):
    bench = lab()
    strong = {"mu": 10.0} if name == "prox" else {}
    plain = trained(bench, "finetune", run_id="a")
    other = trained(bench, name, run_id="b", **strong)
    assert isinstance(other, Update)
    if name != "agem":  # which acts in a conflict only
        assert not same(plain, other)
    assert np.isfinite(other.metrics["loss"])


def test_prox_shortens_the_way(lab):
    bench = lab()

    def length(update):
        return sum(float(np.square(value).sum()) for value in update.delta.values())

    plain = trained(bench, "finetune", run_id="a", step=2)
    near = trained(bench, "prox", run_id="b", step=2, mu=100.0)
    assert length(near) < length(plain)


def test_projection_takes_out_the_conflict_and_nothing_else():
    gradients, reference = [torch.tensor([1.0, 2.0])], [torch.tensor([-1.0, 0.0])]
    project(gradients, reference)
    torch.testing.assert_close(gradients[0], torch.tensor([0.0, 2.0]))
    agreeing = [torch.tensor([1.0, 2.0])]
    project(agreeing, [torch.tensor([1.0, 0.0])])
    torch.testing.assert_close(agreeing[0], torch.tensor([1.0, 2.0]))
    torch.manual_seed(0)
    for _ in range(20):
        g, r = [torch.randn(4, 3), torch.randn(2)], [torch.randn(4, 3), torch.randn(2)]
        before = sum(float(x.square().sum()) for x in g)
        project(g, r)
        assert sum(float((x * y).sum()) for x, y in zip(g, r, strict=True)) >= -1e-5
        assert sum(float(x.square().sum()) for x in g) <= before + 1e-5


def test_distillation_is_zero_from_the_same_answers_and_ignores_new_classes():
    then = torch.tensor([[1.0, 2.0, -torch.inf], [0.5, -1.0, -torch.inf]])
    now = torch.tensor([[1.0, 2.0, 9.0], [0.5, -1.0, -3.0]])
    assert float(distillation(now, then, 2.0)) == pytest.approx(0.0, abs=1e-6)
    other = now + torch.tensor([[1.0, 0.0, 0.0]])
    p, q = torch.softmax(then[:, :2] / 2, 1), torch.log_softmax(other[:, :2] / 2, 1)
    expected = 4 * float((p * (p.log() - q)).sum(dim=1).mean())
    assert float(distillation(other, then, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_dfts_gradient_is_p_times_the_plain_one():
    torch.manual_seed(0)
    labels = torch.tensor([[-100, 3, 1, -100], [-100, -100, 2, 0]])
    logits = torch.randn(2, 4, 5, requires_grad=True)
    (weighted,) = torch.autograd.grad(weighted_completion_losses(logits, labels).sum(), logits)
    (plain,) = torch.autograd.grad(completion_losses(logits, labels).sum(), logits)
    p = torch.softmax(logits.detach(), dim=-1)
    for row, column in ((0, 0), (0, 1), (1, 1), (1, 2)):
        chance = p[row, column, labels[row, column + 1]]
        torch.testing.assert_close(weighted[row, column], chance * plain[row, column])


def test_dft_wants_a_language_model(lab):
    answer = trained(lab(), "dft", step=1)
    assert isinstance(answer, ClientFailure)
    assert "causal-lm" in answer.detail


def test_derpp_remembers_the_answers_of_what_is_in_its_memory(lab):
    bench = lab()
    trained(bench, "derpp")
    store = ClientStateStore(bench.trainer.settings.state_folder)
    for step in (2, 3, 5):
        state = store.load("run", IDS[2], before_step=step)
        assert sorted(state.outputs["derpp"].ids) == sorted(state.memory.ids)
    early, late = (store.load("run", IDS[2], before_step=step) for step in (2, 5))
    shared = np.intersect1d(early.outputs["derpp"].ids, late.outputs["derpp"].ids)
    assert len(shared)
    for example in shared:  # the answers of the first time stay
        rows = [
            state.outputs["derpp"].values[state.outputs["derpp"].ids == example]
            for state in (early, late)
        ]
        np.testing.assert_array_equal(*rows)


def test_methods_compose_in_a_list(lab):
    bench = lab()
    both = trained(bench, "er", "lwf", "prox", run_id="a")
    one = trained(bench, "er", run_id="b")
    assert both.metrics["replayed"] == one.metrics["replayed"] > 0
    assert not same(both, one)


def test_every_method_has_a_class():
    from clients.trainer import _method

    methods = {name: _method(StrategyChoice(name=name)) for name in CLIENT_METHODS}
    assert {name for name, method in methods.items() if method.remembers} == REMEMBERING
