"""EWC and online EWC: Fisher information against closed forms, and what the penalty holds on to."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clients.local_run import local_run
from clients.methods.ewc import ElasticWeights
from clients.methods.importance import anchored, blended, fisher_of, keep, measured, penalty
from clients.methods.online_ewc import OnlineElasticWeights
from clients.state_store import ClientState, ClientStateStore, Importance
from clients.trainer import LocalTrainer
from clients.workshop import shard_of
from strategies.protocols import ReplayMemory
from strategies.types import HEAD, GroupName, ParamKey, StrategyChoice
from strategies.wire import decode_result, encode_assignment
from tests.clients.test_methods import same, trained
from tests.clients.test_trainer import IDS, lab

__all__ = ["lab"]  # a fixture

WEIGHT = ParamKey(HEAD, "weight")
FEDAVG = {"strategy__aggregation": {"name": "fedavg"}}


def opened(bench, index=0):
    """A client's local run with a head that tells classes apart, before its first step."""
    order = bench.plan(1).orders[index]
    assignment, trainer = order.assignment, bench.trainer
    shop = trainer._workshop(assignment.recipe)
    shop.model.apply(trainer._assemble(shop, assignment, order.tensors), assignment.scale)
    state = ClientState(memory=ReplayMemory.empty(10))
    shard = shard_of(shop, assignment.client_id)
    run = local_run(shop, shard, assignment, assignment.work, state)
    with torch.no_grad():
        run.trainable[WEIGHT].copy_(torch.randn(10, 16, generator=torch.Generator().manual_seed(0)))
    return run


def chances_of(run, ids):
    """Features (n, d), class probabilities (n, C) and labels (n,)."""
    inputs = run.tensors_of(ids)
    with torch.no_grad():
        features = run.model.features(inputs).double()
        logits = run.model.logits(inputs).double().masked_fill(~run.allowed, -torch.inf)
    return features, torch.softmax(logits, dim=1), inputs["labels"]


def test_the_empirical_fisher_of_a_linear_head_is_its_closed_form(lab):
    run = opened(lab())
    ids = run.new_ids[:20]
    x, p, y = chances_of(run, ids)
    gaps = (p - torch.nn.functional.one_hot(y, 10)).square()  # (n, C)
    found = fisher_of(run, ids, "empirical")
    np.testing.assert_allclose(found[WEIGHT], (gaps.T @ x.square() / 20).numpy(), rtol=1e-4)
    np.testing.assert_allclose(found[ParamKey(HEAD, "bias")], gaps.mean(dim=0).numpy(), rtol=1e-4)


def test_the_true_fisher_of_a_linear_head_is_its_closed_form(lab):
    run = opened(lab())
    example, draws = run.new_ids[:1], 3000
    x, p, _ = chances_of(run, example)
    expected = (p[0] * (1 - p[0]))[:, None] * x[0].square()  # E (p − 1[y])² over y ~ p
    run.trainable = {WEIGHT: run.trainable[WEIGHT]}
    found = fisher_of(run, np.repeat(example, draws), "true")[WEIGHT]
    clear = expected > expected.max() * 0.01
    np.testing.assert_allclose(found[clear], expected.numpy()[clear], rtol=0.15)
    assert not found[~run.allowed.numpy()].any()


def test_pooled_fisher_and_penalty_are_the_clients_weighted_ones(lab):
    run = opened(lab())
    parts = [run.new_ids[:6], run.new_ids[6:20]]
    shares = [0.3, 0.7]
    pooled = fisher_of(run, np.concatenate(parts), "empirical")
    each = [fisher_of(run, ids, "empirical") for ids in parts]
    anchor = {key: p.detach().numpy() + 0.1 for key, p in run.trainable.items()}
    for key, value in pooled.items():
        mean = sum(share * found[key] for share, found in zip(shares, each, strict=True))
        np.testing.assert_allclose(mean, value, rtol=1e-5, atol=1e-6 * value.max())
    objective = [
        float(penalty(run.trainable, [Importance(fisher=fisher, anchors=anchor)]).detach())
        for fisher in (pooled, *each)
    ]
    assert objective[0] == pytest.approx(0.3 * objective[1] + 0.7 * objective[2], rel=1e-6)


def test_a_penalty_is_flat_at_its_anchor_and_where_nothing_mattered(lab):
    run = opened(lab())
    received = {key: p.detach().clone() for key, p in run.trainable.items()}
    past = anchored(Importance(fisher=measured(run, 8, "true")), received)
    assert past.anchors.keys() == run.trainable.keys()
    at_anchor = penalty(run.trainable, [past])
    assert at_anchor.item() == 0.0
    found = torch.autograd.grad(at_anchor, list(run.trainable.values()))
    assert all(not gradient.any() for gradient in found)
    with torch.no_grad():
        for parameter in run.trainable.values():
            parameter += 1.0
    total = penalty(run.trainable, [past, past])
    expected = sum(float(value.sum()) for value in past.fisher.values())  # ½·F·1², twice
    assert total.item() == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(total, [run.trainable[WEIGHT]])
    np.testing.assert_allclose(gradient.numpy(), 2 * past.fisher[WEIGHT], rtol=1e-4, atol=1e-6)
    assert not gradient[~run.allowed].any()  # F is 0 there


def test_importance_is_that_of_at_most_so_many_examples(lab, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "clients.methods.importance.fisher_of", lambda run, ids, kind: seen.append(ids) or {}
    )
    run = opened(lab())
    for count in (5, 10_000):
        measured(run, count, "true")
    assert [len(ids) for ids in seen] == [5, len(run.new_ids)]
    assert np.isin(seen[0], run.new_ids).all()
    assert len(np.unique(seen[1])) == len(run.new_ids)


def test_components_that_only_one_side_has_are_free():
    key = ParamKey(GroupName("q"), "lora_B")
    theta = {key: torch.nn.Parameter(torch.ones(3, 4))}
    past = Importance(
        fisher={key: np.full((3, 2), 2.0, np.float32)}, anchors={key: np.zeros((3, 6), np.float32)}
    )
    total = penalty(theta, [past])
    assert total.item() == 6.0  # ½ · 2 · 1² over three rows and two components
    (gradient,) = torch.autograd.grad(total, [theta[key]])
    np.testing.assert_array_equal(gradient, [[2, 2, 0, 0]] * 3)


def test_gamma_zero_forgets_older_tasks():
    one, two, gone = (ParamKey(GroupName(name), "lora_B") for name in "abc")
    old = {one: np.full((2, 3), 4.0, np.float32), gone: np.ones((1, 1), np.float32)}
    new = {one: np.ones((2, 2), np.float32), two: np.ones((1, 2), np.float32)}
    joint = blended(old, new, 0.5)
    np.testing.assert_array_equal(joint[one], [[3, 3, 2]] * 2)
    np.testing.assert_array_equal(joint[two], new[two])
    assert joint[gone] == 0.5
    forgotten = blended(old, new, 0.0)
    np.testing.assert_array_equal(forgotten[one], [[1, 1, 0]] * 2)
    assert not forgotten[gone].any()
    np.testing.assert_array_equal(old[one], np.full((2, 3), 4.0))


def test_rows_of_classes_nobody_trained_are_free():
    bias = ParamKey(HEAD, "bias")
    fisher = {WEIGHT: np.ones((3, 2), np.float32), bias: np.ones(3, np.float32)}
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -1.0]])
    past = anchored(Importance(fisher=fisher), {WEIGHT: rows, bias: torch.zeros(3)})
    np.testing.assert_array_equal(past.fisher[WEIGHT], [[1, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(past.fisher[bias], [1, 0, 1])
    again = anchored(past, {WEIGHT: rows + 5, bias: torch.ones(3)})
    np.testing.assert_array_equal(again.anchors[WEIGHT], rows)


def state_before(bench, step, run_id="run"):
    return ClientStateStore(bench.trainer.settings.state_folder).load(
        run_id, IDS[2], before_step=step
    )


def test_ewc_keeps_one_penalty_per_task_and_online_ewc_one_in_all(lab):
    bench = lab(**FEDAVG)
    trained(bench, "ewc", "online-ewc", step=5)
    after_first, after_second = state_before(bench, 3), state_before(bench, 99)
    assert set(after_first.importances) == {"ewc-0", "online-ewc"}
    assert not after_first.importances["ewc-0"].anchors
    assert set(after_second.importances) == {"ewc-0", "ewc-1", "online-ewc"}
    past = after_second.importances["ewc-0"]
    assert past.anchors.keys() == past.fisher.keys()
    online = after_second.importances["online-ewc"]
    assert all(np.array_equal(online.anchors[k], v) for k, v in past.anchors.items())
    for key, value in past.fisher.items():
        newest = after_second.importances["ewc-1"].fisher[key]
        assert not np.array_equal(newest, value) or not value.any()


def test_online_ewc_adds_a_share_of_older_tasks_to_the_newest(lab):
    """F ← γF + F_t: what γ = 0 leaves is F_t, for without weight both runs train alike."""
    bench = lab(**FEDAVG)
    for gamma in (0.0, 0.75):
        params = {"weight": 0.0, "gamma": gamma, "examples": 16}
        trained(bench, "online-ewc", run_id=f"g{gamma}", step=5, **params)
    old, newest, joint = (
        state_before(bench, step, run_id).importances["online-ewc"].fisher
        for step, run_id in ((3, "g0.75"), (99, "g0.0"), (99, "g0.75"))
    )
    factors = [key for key in joint if key.group != HEAD]  # here the server's head is all zero
    assert any((0.75 * old[key] > 0.1 * newest[key].max()).any() for key in factors)
    for key in factors:
        np.testing.assert_allclose(joint[key], 0.75 * old[key] + newest[key], rtol=1e-5)


def test_online_ewc_anchors_anew_in_every_task_and_ewc_never():
    key = ParamKey(GroupName("q"), "lora_B")
    for method, name, last in (
        (ElasticWeights(), "ewc-0", 0.0),
        (OnlineElasticWeights(), "online-ewc", 2.0),
    ):
        run = SimpleNamespace(state=ClientState(memory=ReplayMemory.empty(1)), received={})
        keep(run, {name: Importance(fisher={key: np.ones((2, 2), np.float32)})})
        for value, begins, expected in ((0.0, True, 0.0), (1.0, False, 0.0), (2.0, True, last)):
            run.received = {key: torch.full((2, 2), value)}
            if begins:
                method.task_start(run)
            method.before_local(run)
            assert (run.state.importances[name].anchors[key] == expected).all()


def test_the_stiffer_the_penalty_the_nearer_the_client_stays(lab):
    bench = lab(**FEDAVG, learning__local_steps=15)

    def moved(weight):
        update = trained(bench, "ewc", run_id=f"w{weight}", step=5, weight=weight)
        past = state_before(bench, 5, f"w{weight}").importances["ewc-0"].fisher
        return sum(
            float((past[key] * np.square(value)).sum()) for key, value in update.delta.items()
        )

    assert moved(1e9) < 0.5 * moved(0.0)


@pytest.mark.parametrize("name", ["ewc", "online-ewc"])
def test_without_weight_it_is_finetuning(name, lab):
    bench = lab(**FEDAVG)
    plain = trained(bench, "finetune", run_id="a", step=5)
    assert same(plain, trained(bench, name, run_id="b", step=5, weight=0.0))
    assert not same(plain, trained(bench, name, run_id="c", step=5, weight=1e7))


@pytest.mark.parametrize("name", ["ewc", "online-ewc"])
def test_a_client_that_starts_anew_goes_on_to_the_same_bits(name, lab, tmp_path):
    bench = lab(**FEDAVG)
    choice = (StrategyChoice(name=name, params={"weight": 1e7}),)

    def ask(trainer, step):
        order = bench.plan(step).orders[2]
        work = dataclasses.replace(order.assignment.work, methods=choice)
        assignment = dataclasses.replace(order.assignment, work=work)
        message = encode_assignment(assignment, order.tensors)
        return decode_result(trainer.answer(assignment.client_id, message))

    for step in (1, 2, 4, 5):
        steady = ask(bench.trainer, step)
    restarted = ask(LocalTrainer(bench.trainer.settings), 5)
    assert same(steady, restarted)
    kept, store = state_before(bench, 99), ClientStateStore(tmp_path / "copy")
    store.save("run", IDS[2], 5, kept)
    read = store.load("run", IDS[2], before_step=6)
    assert read.importances.keys() == kept.importances.keys()
    for label, importance in kept.importances.items():
        for part in ("fisher", "anchors"):
            mine, theirs = getattr(importance, part), getattr(read.importances[label], part)
            assert mine.keys() == theirs.keys()
            assert mine or (label, part) == ("ewc-1", "anchors")  # the next task brings those
            assert all(np.array_equal(value, theirs[key]) for key, value in mine.items())
