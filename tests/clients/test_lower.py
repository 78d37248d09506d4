"""The lower part of a model, computed once per example: the same numbers, fewer passes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clients.data.batches import Encoded, ImageInputs, TextInputs
from clients.data.encoding import Tokens
from clients.local_run import local_run, lower_of
from clients.methods.base import ClientMethod
from clients.model import AdaptedModel
from clients.model.lower import Kept, Lower, blocks_of, touched, values_below
from clients.state_store import ClientState
from clients.training import train
from clients.workshop import shard_of
from strategies.fitting import MOST_KEPT_BYTES
from strategies.protocols import ReplayMemory
from strategies.types import HEAD, StrategyChoice
from tests.clients.test_model import CASES, VOCAB, a_state, base_of
from tests.clients.test_trainer import Lab, lab
from tests.conftest import tiny_config

__all__ = ["lab"]  # a fixture
CHUNKS = (np.array([3, 0, 2]), np.array([1, 4]))
DRY = {
    "distilbert": {"attention_dropout": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
LENGTHS = (2, 7, 4, 3, 5)


def split_of(name: str) -> Encoded:
    """Five examples, texts of different lengths."""
    rng, count = np.random.default_rng(0), len(LENGTHS)
    if CASES[name][0] == "image-classification":
        pixels = rng.standard_normal((count, 1, 8, 8)).astype(np.float32)
        inputs = ImageInputs(pixels=pixels)
    else:
        tokens = Tokens(
            flat=rng.integers(3, VOCAB, sum(LENGTHS)).astype(np.int32),
            offsets=np.cumsum([0, *LENGTHS], dtype=np.int64), types=None,
            prompt_lengths=np.zeros(count, np.int64), num_truncated=0,
        )  # fmt: skip
        inputs = TextInputs(tokens=tokens, pad_id=0)
    nothing = np.zeros(count, np.int64)
    return Encoded(labels=nothing, tasks=nothing, inputs=inputs)


def compare(model, name, values, wanted, mask):
    if CASES[name][0] == "causal-lm":
        values, wanted = values[mask.bool()], wanted[mask.bool()]
    torch.testing.assert_close(values, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("border", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_model_entered_at_a_border_answers_as_it_does_by_itself(name, border):
    config = CASES[name][2] | DRY.get(name, {})
    model, split = AdaptedModel(base_of(name, config=config)), split_of(name)
    model.apply(a_state(model.base), 2.0)
    model.module.eval()
    lower = Lower.of(model, split, CHUNKS, border=border, values="some")
    if border == 3 and not model.pools:
        assert lower is None
        return
    ids = np.array([1, 2])
    inputs = model.device.inputs(split.collate(ids))
    with torch.no_grad():
        for _ in range(2):  # computed, then kept
            entered = model.logits(inputs | lower.inputs(ids))
            compare(model, name, entered, model.logits(inputs), inputs.get("attention_mask"))
    assert model.kept.num_computed == len(LENGTHS)


def test_nothing_is_kept_of_a_lower_part_with_dropout():
    base = base_of("bert", config={**CASES["bert"][2], "hidden_dropout_prob": 0.1})
    assert Lower.of(AdaptedModel(base), split_of("bert"), CHUNKS, border=1) is None


def test_a_border_is_none_where_something_above_looks_below():
    model, split = AdaptedModel(base_of("bert-mean")), split_of("bert-mean")
    first, second = blocks_of(model.module, model.base.description)
    seen = []
    model.module.encoder.register_forward_pre_hook(lambda *_: seen.clear())
    first.attention.register_forward_hook(lambda m, i, output: seen.append(output[0]))
    second.register_forward_hook(lambda m, i, output: output + seen.pop() if seen else output)
    assert Lower.of(model, split, CHUNKS, border=1) is None


def test_chunks_that_were_dropped_come_back_with_the_same_bits():
    model, split = AdaptedModel(base_of("bert")), split_of("bert")
    model.kept.most_bytes = sum(LENGTHS[i] for i in CHUNKS[1]) * 16 * 4
    lower, other = (Lower.of(model, split, [chunk], border=1) for chunk in CHUNKS)
    ids, counts = CHUNKS[0][:2], []
    for _ in range(2):
        first = lower.inputs(ids)["below"]
        again = lower.inputs(ids)["below"]
        counts.append(model.kept.num_computed)
        other.inputs(CHUNKS[1])  # has no room beside the other chunk
        assert 0 < model.kept.held_bytes <= model.kept.most_bytes
        assert torch.equal(first, again)
    assert counts == [3, 8]
    assert torch.equal(lower.inputs(ids)["below"], first)
    assert Lower.of(model, split, CHUNKS, border=1) is None  # both together do not fit


def test_an_example_of_no_chunk_is_computed_with_its_batch():
    model, split = AdaptedModel(base_of("bert")), split_of("bert")
    lower = Lower.of(model, split, CHUNKS[:1], border=1)
    assert lower.inputs(np.array([0, 1])) == {}


def test_what_the_lower_part_is_made_of_has_a_name():
    base = base_of("bert-mean")
    state, description = a_state(base), base.description
    assert touched(state) == {g.name for g in description.groups if g.linear or g.name == HEAD}
    upper = {k: v for k, v in state.items() if ".1." in k.group or k.group == HEAD}
    assert values_below(description, 1, upper, 1.0) == ""
    assert values_below(description, 2, upper, 1.0) != ""
    name = values_below(description, 1, state, 1.0)
    assert name not in ("", values_below(description, 1, state, 2.0))
    assert name == values_below(description, 1, state | upper, 1.0)
    moved = next(k for k in state if ".0." in k.group and k.part == "lora_A")
    assert name != values_below(description, 1, state | {moved: state[moved] + 1}, 1.0)
    zero = {k: v * (k.part != "lora_B") for k, v in state.items() if k.group != HEAD}
    assert touched(zero) == frozenset()


LONG = {"learning__local_steps": 24, "strategy__layer_selection": {"name": "top", "blocks": 1}}
METHODS = [["finetune"], ["er"], ["er", "derpp"], ["lwf"], ["agem"], ["er", "prox"]]


def round_of(bench, lower, step_index=1, methods=(), **how):
    """A client's first round, and what it made of the model."""
    order = bench.plan(step_index).orders[0]
    choices = tuple(StrategyChoice(name=name) for name in methods)
    work = dataclasses.replace(order.assignment.work, methods=choices, **how)
    shop = bench.trainer._workshop(order.assignment.recipe)
    model = bench.trainer._assemble(shop, order.assignment, order.tensors)
    shop.model.apply(model, order.assignment.scale)
    shard, state = (
        shard_of(shop, order.assignment.client_id),
        ClientState(memory=ReplayMemory.empty(0)),
    )
    run = local_run(shop, shard, order.assignment, work, state)
    if lower:
        run.lower = lower_of(run, model, order.assignment.scale)
        assert run.lower is not None
    return run


class Gradients(ClientMethod):
    """Keeps the gradients of every step."""

    def __init__(self):
        self.found = []

    def grad(self, run):
        self.found.append([p.grad.clone() for p in run.trainable.values()])


@pytest.mark.parametrize("how", [{}, {"micro_batch_size": 3, "checkpointing": True}])
def test_a_round_computes_its_frozen_blocks_once_and_has_the_same_gradients(how, lab):
    bench, found = lab(**LONG), []
    for lower in (False, True):
        run = round_of(bench, lower, **how)
        blocks, passes = blocks_of(run.model.module, run.model.base.description), []
        handle = blocks[0].attention.register_forward_hook(
            lambda *_, passes=passes: passes.append(1)
        )

        train(run, [method := Gradients()])
        handle.remove()
        found.append((method.found, len(passes)))
    (plain, many), (kept, few) = found
    for one, other in zip(plain, kept, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    size = how.get("micro_batch_size", 8)
    examples = len(run.new_ids)
    assert many >= 24
    assert few == -(-examples // size)
    assert run.model.kept.num_computed == examples


@pytest.mark.parametrize("methods", METHODS, ids=" ".join)
def test_every_method_trains_alike_with_and_without(methods, tmp_path, monkeypatch):
    config = tiny_config(**LONG, learning__methods=[{"name": n} for n in methods])
    answers = {}
    for name in ("kept", "computed"):
        if name == "computed":
            monkeypatch.setattr("clients.trainer.lower_of", lambda *_: None)
        bench = Lab(tmp_path / name, config)
        answers[name] = [bench.ask(bench.plan(i).orders[2]) for i in (1, 2, 4)]
        shop = bench.trainer._workshop(bench.plan(1).orders[0].assignment.recipe)
        assert (shop.model.kept.num_computed > 0) == (name == "kept")
    for one, other in zip(*answers.values(), strict=True):
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-4)
        for key, value in one.delta.items():
            scale = max(np.abs(value).max(), 1e-6)
            np.testing.assert_allclose(other.delta[key], value, atol=0.02 * scale, err_msg=key.text)


def test_a_process_that_starts_anew_computes_the_same_bits(tmp_path):
    config, answers = tiny_config(**LONG), []
    for restarts in (False, True):
        bench = Lab(tmp_path / str(restarts), config)
        for step_index in (1, 2, 4):
            if restarts:
                bench.trainer.forget()
            answers.append(bench.ask(bench.plan(step_index).orders[2]))
    for one, other in zip(answers[:3], answers[3:], strict=True):
        for key, value in one.delta.items():
            np.testing.assert_array_equal(other.delta[key], value)


def test_nothing_is_kept_where_a_round_passes_through_few_of_the_examples(lab):
    bench = lab(**LONG | {"learning__local_steps": 2})
    run = round_of(bench, lower=False)
    assert lower_of(run, {}, 1.0) is None


def test_nothing_below_the_deepest_trained_group_is_kept_for_the_backward_pass(lab):
    run = round_of(lab(**LONG), lower=False)
    lower, _ = blocks_of(run.model.module, run.model.base.description)
    made, saved = list[torch.Tensor](), list[torch.Tensor]()  # alive, so that no address recurs

    def note(module, inputs, output):
        made.extend(value for value in inputs if isinstance(value, torch.Tensor))

    handles = [part.register_forward_hook(note) for part in lower.modules()]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        run.model.logits(run.tensors_of(run.new_ids[:8]))
    for handle in handles:
        handle.remove()
    below, kept = ({t.untyped_storage().data_ptr() for t in found} for found in (made, saved))
    assert len(below) > 5
    assert kept
    assert not below & kept


def test_a_plan_without_room_keeps_nothing(lab):
    bench = lab(**LONG)
    order = bench.plan().orders[0]
    work = dataclasses.replace(order.assignment.work, keeps=False)
    tight = dataclasses.replace(order.assignment, work=work)
    assert "keeps" not in order.assignment.plain()["work"]
    assert tight.plain()["work"]["keeps"] is False
    kept = bench.trainer._workshop(order.assignment.recipe).model.kept
    bench.ask(order)
    assert kept.held_bytes > 0
    bench.ask(dataclasses.replace(order, assignment=tight))
    assert kept.held_bytes == 0


def test_a_limit_bounds_what_is_kept(tmp_path):
    assert Kept().most_bytes == MOST_KEPT_BYTES
    bench = Lab(tmp_path, tiny_config(**LONG))
    settings = dataclasses.replace(bench.trainer.settings, memory_limit_bytes=2**30)
    bench.trainer.forget()
    bench.trainer.settings = settings
    shop = bench.trainer._workshop(bench.plan(1).orders[0].assignment.recipe)
    assert shop.model.kept.most_bytes == 2**26
