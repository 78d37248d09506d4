"""Probes against gradients taken by hand, and the promise that they leave no trace."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.model import AdaptedModel, example_losses
from clients.probing import ProbeRun, measure
from clients.settings import ClientSettings
from clients.workshop import open_workshop, shard_of
from strategies.lora import drawn_factors, keys_of
from strategies.types import HEAD, Dense, LowRank, Probe, client_ids
from tests.conftest import tiny_config

ALL = (
    "gradient-energy",
    "signal-to-noise",
    "relative-gradient",
    "fisher",
    "descent",
    "input-spectrum",
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probing")
    settings = ClientSettings(cache_folder=folder / "cache", state_folder=folder / "state")
    return open_workshop(tiny_config().shared_recipe().model_dump_json(), settings)


def a_run(shop, statistics=ALL, batches=2, batch_size=8, learning_rate=1e-3) -> ProbeRun:
    model, tensors, plans = shop.model, {}, {HEAD: Dense()}
    rng = np.random.default_rng(0)
    for group in shop.base.description.groups:
        if group.linear and group.kind == "linear":
            pair = drawn_factors(0, group, 2)
            pair = pair._replace(b=(0.05 * rng.normal(size=pair.b.shape)).astype(np.float32))
            tensors |= zip(keys_of(group.name), pair, strict=True)
            plans[group.name] = LowRank(rank=2)
    model.apply(tensors, 2.0)
    ids = shard_of(shop, client_ids(3)[0]).train_ids(0)[: batches * batch_size]
    chunks = np.array_split(ids, batches)
    split = shop.dataset.train
    return ProbeRun(
        probe=Probe(
            tasks=(0,), statistics=statistics, batches=batches, batch_size=batch_size,
            learning_rate=learning_rate, max_rank=4,
        ),
        model=model,
        trainable=model.trainable(plans),
        batches=[{n: torch.from_numpy(a) for n, a in split.collate(c).items()} for c in chunks],
        weights=[torch.ones(len(chunk)) for chunk in chunks],
        allowed=torch.ones(10, dtype=torch.bool),
    )  # fmt: skip


def gradients(model: AdaptedModel, run: ProbeRun, loss) -> dict:
    found = torch.autograd.grad(loss, list(run.trainable.values()))
    return dict(zip(run.trainable, found, strict=True))


def batch_loss(run: ProbeRun, inputs):
    return example_losses(run.model, inputs, run.allowed).mean()


def test_a_probe_leaves_no_trace(shop):
    run = a_run(shop)
    module = shop.model.module
    module.train()
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure(run)
    assert torch.equal(torch.rand(3), expected)
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    module.eval()


def test_gradient_statistics_are_those_of_the_mean_gradient(shop):
    run = a_run(shop)
    statistics, _ = measure(run)
    parts = [gradients(run.model, run, batch_loss(run, inputs)) for inputs in run.batches]
    mean = {key: (parts[0][key] + parts[1][key]) / 2 for key in parts[0]}
    for group in {key.group for key in mean}:
        own = {key: value for key, value in mean.items() if key.group == group}
        energy = sum(float(g.square().sum()) for g in own.values())
        size = sum(float(run.trainable[key].detach().square().sum()) for key in own)
        noise = sum(float(g.mean() ** 2 / g.std()) for g in own.values() if g.std() > 0)
        assert statistics[group]["gradient-energy"] == pytest.approx(energy, rel=1e-4)
        assert statistics[group]["signal-to-noise"] == pytest.approx(noise, rel=1e-4)
        expected = energy / size if size else energy
        assert statistics[group]["relative-gradient"] == pytest.approx(expected, rel=1e-4)


def test_fisher_squares_gradients_of_examples_and_not_of_batches(shop):
    large, small = a_run(shop, ("fisher",), 2, 8), a_run(shop, ("fisher",), 4, 4)
    one, _ = measure(large)
    other, _ = measure(small)
    for group, values in one.items():
        assert values["fisher"] == pytest.approx(other[group]["fisher"], rel=1e-3)
    twice, _ = measure(replace(large, batches=[*large.batches, *large.batches]))
    for group, values in one.items():
        assert values["fisher"] == pytest.approx(twice[group]["fisher"], rel=1e-5)
    example = {name: value[:1] for name, value in large.batches[0].items()}
    alone, _ = measure(replace(large, batches=[example]))
    own = gradients(large.model, large, batch_loss(large, example))
    head = sum(float(g.square().sum()) for key, g in own.items() if key.group == HEAD)
    assert alone[HEAD]["fisher"] == pytest.approx(head, rel=1e-4)


def test_descent_is_the_first_order_fall_of_the_loss(shop):
    run = a_run(shop, ("descent",), 1, 16, learning_rate=1e-4)
    statistics, _ = measure(run)
    total = sum(values["descent"] for values in statistics.values())
    with torch.no_grad():
        before = float(batch_loss(run, run.batches[0]))
    parameters = list(run.trainable.values())
    kept = [p.detach().clone() for p in parameters]
    for parameter, gradient in zip(
        parameters, gradients(run.model, run, batch_loss(run, run.batches[0])).values(), strict=True
    ):
        parameter.grad = gradient
    torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0).step()
    with torch.no_grad():
        after = float(batch_loss(run, run.batches[0]))
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
            parameter.grad = None
    assert total == pytest.approx(before - after, rel=0.05)


def test_input_spectra_are_those_of_the_inputs_and_shared_where_inputs_are(shop):
    run = a_run(shop, ("input-spectrum",))
    _, sketches = measure(run)
    layer = next(key.group for key in sketches)  # a projection of the first block's attention
    seen = []
    hook = shop.model.module.get_submodule(layer).register_forward_hook(
        lambda module, args, output: seen.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for inputs in run.batches:
            batch_loss(run, inputs)
    hook.remove()
    stack = torch.cat(seen).numpy()
    sketch = sketches[next(k for k in sketches if k.group == layer)]
    assert sketch.shape == (4, stack.shape[1])
    values = np.linalg.svd(stack, compute_uv=False)[:4]
    np.testing.assert_allclose(np.linalg.norm(sketch, axis=1), values, rtol=1e-3)
    alike = [key for key, other in sketches.items() if np.array_equal(other, sketch)]
    assert len(alike) == 3  # query, key and value
