"""Laws that the published client methods keep, on a real model about to learn its second task."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from clients.device import CPU
from clients.methods.agem import AveragedGem
from clients.methods.derpp import DarkExperienceReplay
from clients.methods.dft import DynamicFinetuning, weighted_completion_losses
from clients.methods.lwf import LearningWithoutForgetting
from clients.methods.olora import OrthogonalLora
from clients.methods.outputs import store
from clients.methods.prox import Prox
from clients.model import completion_losses
from clients.recall import losses_on, mean_gradient
from clients.state_store import Outputs
from clients.trainer import LocalTrainer
from clients.training import Batch, Draw, train
from strategies.lora import keys_of, merged_keys
from strategies.types import HEAD, GroupName, ParamKey, StrategyChoice
from strategies.wire import decode_result, encode_assignment
from tests.clients.test_methods import same, trained
from tests.clients.test_recall import local_run
from tests.clients.test_trainer import lab

__all__ = ["lab"]  # a fixture


def moved(run, seed=0, by=0.1):
    """The run with every trained value moved a little, the head's as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in run.trainable.values():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return run


def a_batch(run, size=6) -> Batch:
    ids = run.new_ids[:size]
    inputs = run.tensors_of(ids)
    return Batch(Draw(ids, ids[:0]), inputs, run.model.logits(inputs))


def added(method, run, batch) -> torch.Tensor:
    """What the method adds to a loss of nothing."""
    return method.loss(run, batch, torch.zeros(()))


class Dealt:
    """A replay policy that deals what it is given, and writes down how much was asked for."""

    def __init__(self, *hands):
        self.hands, self.asked = [np.array(hand) for hand in hands], []

    def draw(self, memory, count, rng):
        self.asked.append(count)
        return self.hands.pop(0)


class Watched:
    """A replay policy whose draws are written down."""

    def __init__(self, policy):
        self.policy, self.drawn = policy, []

    def draw(self, memory, count, rng):
        self.drawn.append(self.policy.draw(memory, count, rng))
        return self.drawn[-1]


# derpp


def test_answers_have_not_moved_when_they_are_put_away(lab):
    run, method = moved(local_run(lab())), DarkExperienceReplay(alpha=1e3, beta=0.0)
    train(run, [method])
    batch = a_batch(run)
    assert run.num_replayed == 0  # nothing was stored when the round began
    assert added(method, run, batch).item() == pytest.approx(0.0, abs=1e-6)
    assert run.num_replayed > 0
    assert added(method, moved(run), batch).item() > 0.1


def test_the_loss_of_derpp_by_hand(lab):
    run = moved(local_run(lab()))
    memory, classes = run.state.memory.ids, 5
    then = np.full((8, 10), -np.inf, np.float32)
    then[:, :classes] = np.random.default_rng(0).normal(size=(8, classes))
    store(run, "derpp", Outputs(ids=memory, values=then))
    run.policy = Dealt(memory[[1, 4, 6]], memory[[2, 0, 3]])
    found = added(DarkExperienceReplay(alpha=0.3, beta=0.7), run, a_batch(run))
    now = run.model.logits(run.tensors_of(memory[[1, 4, 6]]))[:, :classes]
    distance = (now - torch.tensor(then[[1, 4, 6], :classes])).square().sum() / 3
    inputs = run.tensors_of(memory[[2, 0, 3]])
    again = run.model.logits(inputs).masked_fill(~run.allowed, -torch.inf)
    expected = 0.3 * distance + 0.7 * functional.cross_entropy(again, inputs["labels"])
    torch.testing.assert_close(found, expected)
    assert run.policy.asked == [3, 3]  # share ½ of a batch of six


def test_the_two_draws_of_derpp_know_nothing_of_each_other(lab):
    """Of eight examples one twice: alike in an eighth of the steps, within five standard errors."""
    run, method, steps = local_run(lab()), DarkExperienceReplay(), 400
    method.after_local(run)
    run.policy = Watched(run.policy)
    batch = a_batch(run, size=2)
    for _ in range(steps):
        added(method, run, batch)
    first, second = (np.concatenate(run.policy.drawn[at::2]) for at in (0, 1))
    assert len(first) == len(second) == steps
    assert np.mean(first == second) == pytest.approx(1 / 8, abs=5 * np.sqrt(7 / 64 / steps))


# agem


def test_agem_steps_nowhere_the_memory_would_lose(lab):
    run = moved(local_run(lab()))
    memory, parameters = run.state.memory.ids, list(run.trainable.values())
    reference = mean_gradient(run, memory, parameters)
    generator = torch.Generator().manual_seed(1)
    conflict = [-g + 0.1 * g.std() * torch.randn(g.shape, generator=generator) for g in reference]

    def inner(one, other):
        return float(sum((a * b).sum() for a, b in zip(one, other, strict=True)))

    def rise(gradients, rate=1e-3):
        before = losses_on(run, memory).mean()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(rate * gradient)
            found = losses_on(run, memory).mean() - before
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(rate * gradient)
        return found

    for parameter, gradient in zip(parameters, conflict, strict=True):
        parameter.grad = gradient.clone()
    AveragedGem().grad(run)
    projected = [parameter.grad for parameter in parameters]
    square = inner(reference, reference)
    assert inner(conflict, reference) < -0.5 * square
    assert abs(inner(projected, reference)) <= 1e-5 * square
    assert inner(projected, projected) < inner(conflict, conflict)
    assert rise(conflict) > 0
    assert rise(projected) < 0.05 * rise(conflict)
    assert run.num_replayed == 8
    for parameter, gradient in zip(parameters, reference, strict=True):
        parameter.grad = gradient.clone()
    AveragedGem().grad(run)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, reference, strict=True))


# lwf


def test_distillation_begins_at_nothing_and_pulls_back_from_there(lab):
    run, method = moved(local_run(lab())), LearningWithoutForgetting(alpha=0.5, temperature=2.0)
    method.task_start(run)
    loss = added(method, run, a_batch(run))
    gradients = torch.autograd.grad(loss, list(run.trainable.values()))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert all(float(gradient.abs().max()) < 1e-5 for gradient in gradients)
    old = torch.tensor(sorted(set(run.known) & set(np.flatnonzero(run.allowed.numpy()))))
    teacher = a_batch(run).logits.detach()[:, old] / 2
    batch = a_batch(moved(run))
    student = batch.logits[:, old] / 2
    p = torch.softmax(teacher, dim=1)
    gaps = torch.log_softmax(teacher, dim=1) - torch.log_softmax(student, dim=1)
    expected = 0.5 * 4 * (p * gaps).sum(dim=1).mean()
    torch.testing.assert_close(added(method, run, batch), expected, rtol=1e-4, atol=1e-7)
    assert expected.item() > 1e-4


def test_who_knows_nothing_yet_has_nothing_to_distil(lab):
    bench = lab()
    plain = trained(bench, "finetune", run_id="a", step=2)
    assert same(plain, trained(bench, "lwf", run_id="b", step=2, alpha=10.0))


# prox, olora, dft


def test_the_pull_of_prox_by_hand(lab):
    run = moved(local_run(lab()))
    run.received = {key: p.detach().clone() for key, p in run.trainable.items()}
    batch, parameters = a_batch(run), list(run.trainable.values())
    assert added(Prox(mu=0.3), run, batch).item() == 0.0
    moved(run)
    loss = added(Prox(mu=0.3), run, batch)
    gaps = [p.detach() - run.received[key] for key, p in run.trainable.items()]
    assert loss.item() == pytest.approx(0.15 * sum(float((g * g).sum()) for g in gaps))
    for gradient, gap in zip(torch.autograd.grad(loss, parameters), gaps, strict=True):
        torch.testing.assert_close(gradient, 0.3 * gap)


def test_the_loss_of_olora_by_hand():
    """Two frozen pairs and a trained one; the head is no factor."""
    group = GroupName("q")
    key_a, key_b = keys_of(group)
    a, b = torch.tensor([[1.0, -2.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    frozen = {
        merged_keys(group, 0)[0]: np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32),
        merged_keys(group, 0)[1]: np.ones((2, 2), np.float32),
        merged_keys(group, 1)[0]: np.array([[0.0, 0.0, -1.0]], np.float32),
        merged_keys(group, 1)[1]: np.ones((2, 1), np.float32),
    }
    run = SimpleNamespace(
        trainable={key_a: a, key_b: b, ParamKey(HEAD, "weight"): torch.ones(2, 2)},
        frozen=frozen,
        model=SimpleNamespace(device=CPU),
    )
    lengths = 3 + 5  # ‖A‖ and ‖B‖
    for norm, overlap in (("l1", 1 + 2 + 2), ("squared", 1 + 4 + 4)):
        method = OrthogonalLora(lambda1=0.5, lambda2=0.1, norm=norm)
        found = method.loss(run, None, torch.tensor(7.0))
        assert float(found) == pytest.approx(7 + 0.5 * overlap + 0.1 * lengths)


def a_completion(sharpness=1.0):
    """A language model's batch of two answers, its logits ``sharpness`` in favour of the gold."""
    labels = torch.tensor([[-100, 3, 1, -100], [-100, -100, 2, 0]])
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    for row, column in ((0, 0), (0, 1), (1, 1), (1, 2)):
        logits[row, column, labels[row, column + 1]] += sharpness
    run = SimpleNamespace(recipe=SimpleNamespace(task="causal-lm"))
    return run, Batch(Draw(labels[:, 0].numpy(), np.zeros(0)), {"labels": labels}, logits)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_dft_blends_with_the_plain_loss(share):
    run, batch = a_completion()
    labels = batch.inputs["labels"]
    plain = completion_losses(batch.logits, labels).mean()
    log_p = torch.log_softmax(batch.logits[:, :-1], dim=-1).gather(
        2, labels[:, 1:].clamp(min=0)[..., None]
    )[..., 0]  # (2, 3)
    weighted = (-log_p.exp() * log_p)[labels[:, 1:] >= 0].sum() / 4  # two tokens in each answer
    found = DynamicFinetuning(share=share).loss(run, batch, plain)
    torch.testing.assert_close(found, (1 - share) * plain + share * weighted)


def test_dft_is_finetuning_on_what_the_model_is_sure_of():
    _, batch = a_completion(sharpness=12.0)
    labels = batch.inputs["labels"]
    plain, weighted = (
        f(batch.logits, labels) for f in (completion_losses, weighted_completion_losses)
    )
    assert (plain > 1e-6).all()
    torch.testing.assert_close(weighted, plain, rtol=1e-3, atol=0)


# what is remembered


@pytest.mark.parametrize(
    ("method", "policy"),
    [
        *(("er", policy) for policy in ("reservoir", "balanced", "ring", "mir", "forgetting")),
        *((method, "reservoir") for method in ("derpp", "agem", "dmt", "lwf")),
    ],
)
def test_a_client_that_starts_anew_goes_on_to_the_same_bits(method, policy, lab):
    """Nothing that a method needs is left in the process alone."""
    bench = lab(replay__policy={"name": policy})
    params = {"share": 0.2} if method == "dmt" else {}
    choices = (StrategyChoice(name=method, params=params),)

    def ask(trainer, step):
        order = bench.plan(step).orders[2]
        work = dataclasses.replace(order.assignment.work, methods=choices)
        assignment = dataclasses.replace(order.assignment, work=work)
        message = encode_assignment(assignment, order.tensors)
        return decode_result(trainer.answer(assignment.client_id, message))

    for step in (1, 2, 4):
        ask(bench.trainer, step)
    steady, restarted = ask(bench.trainer, 5), ask(LocalTrainer(bench.trainer.settings), 5)
    assert same(steady, restarted)
    assert steady.metrics == restarted.metrics
    assert steady.metrics["replayed"] > 0 or method == "lwf"
