"""The loss in the coefficients of frozen pairs: against finite differences of whole models."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clients.coefficients import pair_curvature
from clients.model import example_losses
from clients.probed import _examples
from clients.probing import ProbeRun, measure
from clients.settings import ClientSettings
from clients.workshop import open_workshop, shard_of
from strategies.errors import ModelError
from strategies.lora import merged_keys
from strategies.merging.coefficients import CURVATURE, SUMS
from strategies.protocols import ReplayMemory
from strategies.types import HEAD, Dense, ParamKey, Probe, client_ids
from tests.conftest import tiny_config

SCALE = 2.0


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coefficients")
    settings = ClientSettings(cache_folder=folder / "cache", state_folder=folder / "state")
    return open_workshop(tiny_config().shared_recipe().model_dump_json(), settings)


def pairs_of(shop, num_groups=3):
    """Two pairs of rank 3 and 1 for one group, one pair for others, and a head."""
    rng, tensors = np.random.default_rng(0), {}
    linear = [g for g in shop.base.description.groups if g.linear and g.kind == "linear"]
    for index, spec in enumerate(linear[:num_groups]):
        d_out, d_in = spec.linear
        for pair, rank in enumerate((3, 1) if index == 1 else (2,)):
            values = rng.normal(size=(rank, d_in)), rng.normal(size=(d_out, rank))
            tensors |= {
                key: (0.2 * value).astype(np.float32)
                for key, value in zip(merged_keys(spec.name, pair), values, strict=True)
            }
    head = next(g for g in shop.base.description.groups if g.name == HEAD)
    tensors |= {
        ParamKey(HEAD, part): rng.normal(size=shape).astype(np.float32)
        for part, shape in head.parts.items()
    }
    return tensors


def a_run(shop, tensors, batches=2) -> ProbeRun:
    shop.model.apply(tensors, SCALE)
    ids = shard_of(shop, client_ids(3)[0]).train_ids(0)[: batches * 6]
    split, chunks = shop.dataset.train, np.array_split(ids, batches)
    allowed = torch.zeros(10, dtype=torch.bool)
    allowed[:5] = True
    return ProbeRun(
        probe=Probe(
            tasks=(0,), statistics=(CURVATURE,), batches=batches, batch_size=6,
            learning_rate=1e-3, remembered=True,
        ),
        model=shop.model,
        trainable=shop.model.trainable({HEAD: Dense()}),
        batches=[{n: torch.from_numpy(a) for n, a in split.collate(c).items()} for c in chunks],
        weights=[np.linspace(1, 3, len(chunk)) for chunk in chunks],
        allowed=allowed,
        frozen={key: value for key, value in tensors.items() if key.group != HEAD},
        scale=SCALE,
    )  # fmt: skip


def order(tensors):
    """Pairs by name of group and then by index."""
    return sorted(
        (key.group, int(key.part.removeprefix("merged_A.")))
        for key in tensors if key.part.startswith("merged_A.")
    )  # fmt: skip


def whole(sketches):
    return np.hstack([sketches[key] for key in sorted(sketches)]).astype(np.float64)


def scaled(tensors, pair, factor):
    key = merged_keys(*pair)[1]
    return {**tensors, key: (factor * tensors[key]).astype(np.float32)}


def logits(shop, run, tensors):
    shop.model.apply(tensors, SCALE)
    with torch.no_grad(), shop.model.in_evaluation():
        return torch.cat([run.model.logits(inputs) for inputs in run.batches]).double().numpy()


def losses(shop, run, tensors):
    shop.model.apply(tensors, SCALE)
    with torch.no_grad(), shop.model.in_evaluation():
        found = [example_losses(run.model, inputs, run.allowed) for inputs in run.batches]
    return torch.cat(found).double().numpy()


def test_gradients_are_finite_differences_of_the_weighted_loss(shop):
    tensors = pairs_of(shop)
    run = a_run(shop, tensors)
    _, sketches = measure(run)
    sums, weights = whole(sketches), np.concatenate(list(run.weights))
    assert sums.shape == (SUMS + 4, 4)
    np.testing.assert_allclose(sums[0], weights @ losses(shop, run, tensors), rtol=1e-5)
    np.testing.assert_allclose(sums[1], weights.sum(), rtol=1e-6)
    step = 2e-2
    for column, pair in enumerate(order(tensors)):
        up, down = (losses(shop, run, scaled(tensors, pair, 1 + s)) for s in (step, -step))
        expected = weights @ (up - down) / (2 * step)
        assert sums[2, column] == pytest.approx(expected, rel=2e-2, abs=5e-3)
    assert np.abs(sums[2]).min() > 1e-2


def test_curvature_is_the_fisher_information_of_the_answers(shop):
    tensors = pairs_of(shop)
    run, step = a_run(shop, tensors), 2e-2
    sums, weights = whole(measure(run)[1]), np.concatenate(list(run.weights))
    jacobian = np.stack(
        [
            (logits(shop, run, scaled(tensors, pair, 1 + step))
             - logits(shop, run, scaled(tensors, pair, 1 - step)))[:, :5] / (2 * step)
            for pair in order(tensors)
        ],
        axis=2,
    )  # fmt: skip
    shown = np.exp(logits(shop, run, tensors)[:, :5])
    p = shown / shown.sum(axis=1, keepdims=True)
    of_softmax = np.einsum("nc,cd->ncd", p, np.eye(5)) - np.einsum("nc,nd->ncd", p, p)
    expected = np.einsum("n,nci,ncd,ndj->ij", weights, jacobian, of_softmax, jacobian)
    np.testing.assert_allclose(sums[SUMS:], expected, rtol=3e-2, atol=2e-2 * expected.max())
    np.testing.assert_allclose(sums[SUMS:], sums[SUMS:].T, rtol=1e-4, atol=1e-6)


def test_sums_add_up_over_batches_and_leave_the_model_alone(shop):
    tensors = pairs_of(shop)
    run = a_run(shop, tensors)
    before = logits(shop, run, tensors)
    parts = [
        whole(measure(replace(run, batches=[b], weights=[w]))[1])
        for b, w in zip(run.batches, run.weights, strict=True)
    ]
    np.testing.assert_allclose(whole(measure(run)[1]), parts[0] + parts[1], rtol=1e-4, atol=1e-5)
    with torch.no_grad(), shop.model.in_evaluation():
        after = torch.cat([run.model.logits(inputs) for inputs in run.batches]).double().numpy()
    np.testing.assert_array_equal(after, before)


def test_a_model_without_frozen_pairs_has_nothing_to_tell(shop):
    run = a_run(shop, pairs_of(shop, num_groups=0))
    assert measure(run) == ({}, {})


def test_a_module_that_mixes_examples_is_named(shop):
    tensors = pairs_of(shop)
    run = a_run(shop, tensors)
    group = order(tensors)[0][0]
    shop.model.module.get_submodule(group).register_forward_pre_hook(
        flatten := lambda module, args: (args[0].reshape(-1, args[0].shape[-1])[:5],)
    )
    hooks = shop.model.module.get_submodule(group)._forward_pre_hooks
    try:
        with pytest.raises(ModelError, match="rows for 6 examples"):
            pair_curvature(run)
    finally:
        for name in [n for n, hook in hooks.items() if hook is flatten]:
            del hooks[name]


def test_new_examples_stand_for_all_of_the_task_and_memories_for_what_they_were_offered():
    shard = SimpleNamespace(train_ids=lambda task: np.arange(100 * task, 100 * task + 40))
    memory = ReplayMemory.empty(6)
    memory = replace(
        memory,
        ids=np.array([3, 5, 101, 102]),
        tasks=np.array([0, 0, 1, 1]),
        labels=np.array([7, 7, 8, 8]),
        offered=np.array([[0, 7, 40], [1, 8, 40]]),
    )
    probe = Probe(
        tasks=(1,), statistics=(CURVATURE,), batches=2, batch_size=5, learning_rate=1e-3,
        remembered=True,
    )  # fmt: skip
    ids, weights = _examples(shard, probe, memory, 0)
    assert len(ids) == 12
    assert set(ids[10:].tolist()) == {3, 5}
    assert (weights[:10] == 4.0).all()
    assert (weights[10:] == 20.0).all()
    assert weights.sum() == 80
