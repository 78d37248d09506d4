"""Client methods: their formulas by hand, and what they do in a real local training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clients.methods.agem import project
from clients.methods.dft import weighted_completion_losses
from clients.methods.lwf import distillation
from clients.methods.olora import OrthogonalLora
from clients.model import completion_losses
from clients.state_store import ClientStateStore
from strategies.catalog import CLIENT_METHODS, REMEMBERING
from strategies.lora import merged_keys
from strategies.merging.folding import folded
from strategies.protocols import MergeView
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


def overlap(tensors, delta) -> float:
    """Σ |Aᵢ Aᵀ| of the frozen pairs and the adapters after training."""
    return sum(
        float(np.abs(tensors[merged_keys(key.group, 0)[0]] @ (tensors[key] + moved).T).sum())
        for key, moved in delta.items()
        if key.part == "lora_A"
    )


def test_olora_turns_the_adapter_away_from_those_of_earlier_tasks(lab):
    bench, rng = (
        lab(learning__local_steps=8, learning__learning_rate=0.02),
        np.random.default_rng(0),
    )
    learnt = {
        key: rng.normal(size=value.shape, scale=0.3).astype(np.float32)
        for key, value in bench.state.tensors.items()
    }
    view = MergeView(groups=bench.federation.model.groups, task_index=0, seed=0)
    tensors = folded(view, learnt)
    changed = {key.text: 1 for key in tensors}
    bench.state = dataclasses.replace(bench.state, tensors=tensors, changed=changed)
    still = {key: 0 * value for key, value in tensors.items() if key.part == "lora_A"}
    start = overlap(tensors, still)
    found = {
        name: overlap(tensors, trained(bench, "olora", run_id=name, **params).delta)
        for name, params in {
            "off": {"lambda1": 0.0},
            "l1": {"lambda1": 50.0},
            "squared": {"lambda1": 50.0, "norm": "squared"},
        }.items()
    }
    assert found["l1"] < 0.5 * min(start, found["off"])
    assert found["squared"] < 0.5 * min(start, found["off"])


def test_the_penalty_of_olora_by_hand():
    old = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    new = torch.tensor([[1.0, -3.0, 1.0]])
    assert float(OrthogonalLora().overlap(old, new)) == 3 + 3
    assert float(OrthogonalLora(norm="squared").overlap(old, new)) == 9 + 9
    assert float(OrthogonalLora().overlap(old, torch.tensor([[2.0, 0.0, -1.0]]))) == 0


def test_the_mean_of_clients_adapters_overlaps_no_more_than_they_do():
    torch.manual_seed(0)
    old, clients = torch.randn(4, 9), torch.randn(5, 3, 9)
    for norm in ("l1", "squared"):
        penalty = OrthogonalLora(norm=norm).overlap
        each = torch.stack([penalty(old, a) for a in clients])
        assert penalty(old, clients.mean(dim=0)) <= each.mean()
    apart = clients - clients @ torch.linalg.pinv(old) @ old
    assert float(OrthogonalLora().overlap(old, apart.mean(dim=0))) <= 1e-4
    b = torch.randn(6, 3)
    assert float(((b @ apart[0]) @ old.T).abs().max()) <= 1e-4  # ΔW_t Aᵢᵀ = 0


def test_olora_without_a_past_is_finetuning(lab):
    bench = lab()
    plain = trained(bench, "finetune", run_id="a", step=2)
    assert same(plain, trained(bench, "olora", run_id="b", step=2))
    assert not same(plain, trained(bench, "olora", run_id="c", step=2, lambda2=0.1))


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
    from clients.local_run import method_of

    methods = {name: method_of(StrategyChoice(name=name)) for name in CLIENT_METHODS}
    assert {name for name, method in methods.items() if method.remembers} == REMEMBERING
