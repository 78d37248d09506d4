"""Models: groups cover every architecture, states come and go without a trace, exports load."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel

from clients.model import (
    AdaptedModel,
    build_base,
    load_base,
    load_merged,
    masked_cross_entropy,
    merge,
)
from clients.model.losses import completion_losses
from strategies.errors import ModelError
from strategies.lora import initial_factors, is_merged, joined, keys_of, merged_keys
from strategies.peft_format import parameter_name, write_adapter
from strategies.recipe import (
    DataRecipe,
    ModelRecipe,
    PartitionRecipe,
    SharedRecipe,
    StreamRecipe,
)
from strategies.rng import rng_for
from strategies.types import HEAD, Dense, GroupName, LowRank, ParamKey, TaskInfo

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
IMAGE = SMALL | {"image_size": 8, "patch_size": 4, "num_channels": 1}
DECODER = {k: SMALL[k] for k in list(SMALL)[:4]} | {"num_key_value_heads": 2, "pad_token_id": 0}
CASES = {
    "bert": ("sequence-classification", "bert", SMALL, "model"),
    "bert-mean": ("sequence-classification", "bert", SMALL, "mean"),
    "bert-cls": ("sequence-classification", "bert", SMALL, "cls"),
    "roberta": ("sequence-classification", "roberta", SMALL, "model"),
    "distilbert": (
        "sequence-classification",
        "distilbert",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0},
        "model",
    ),
    "gpt2": ("causal-lm", "gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, "model"),
    "llama": ("causal-lm", "llama", DECODER, "model"),
    "llama-classifier": ("sequence-classification", "llama", DECODER, "model"),
    "qwen2": ("causal-lm", "qwen2", DECODER, "model"),
    "vit": ("image-classification", "vit", IMAGE, "model"),
    "vit-mean": ("image-classification", "vit", IMAGE, "mean"),
    "deit-mean": ("image-classification", "deit", IMAGE, "mean"),
}
NUM_LABELS, VOCAB = 4, 259  # the byte tokenizer's


def recipe_of(case: str, **changes) -> ModelRecipe:
    task, architecture, config, pooling = CASES[case]
    values = {
        "task": task,
        "name": "from-config",
        "architecture": architecture,
        "config": config,
        "pooling": pooling,
        "tokenizer": "bytes",
    }
    return ModelRecipe(**(values | changes))


def base_of(case: str, **changes):
    return build_base(recipe_of(case, **changes), num_labels=NUM_LABELS, vocab_size=VOCAB, seed=0)


def inputs_of(name: str):
    generator = torch.Generator().manual_seed(0)
    if CASES[name][0] == "image-classification":
        return {"pixel_values": torch.randn(3, 1, 8, 8, generator=generator)}
    ids = torch.randint(3, VOCAB, (3, 6), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def a_state(base, *, seed: int = 0, head: bool = True):
    """Factors of different ranks on every linear module, and a moved head."""
    tensors = {}
    for index, group in enumerate(
        g for g in base.description.groups if g.linear and g.kind == "linear"
    ):
        rng = rng_for(seed, group.name)
        a, b = initial_factors(group.linear, 1 + index % 3, rng)
        b = 0.2 * rng.normal(size=b.shape).astype(np.float32)
        tensors |= zip(keys_of(group.name), (a, b), strict=True)
    for group in base.description.groups:
        if head and group.kind == "head":
            for part, shape in group.parts.items():
                tensors[ParamKey(HEAD, part)] = (
                    rng_for(seed, part).normal(size=shape).astype(np.float32)
                )
    return tensors


def logits(model: AdaptedModel, inputs):
    with torch.no_grad():
        return model.logits(inputs).clone()


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_is_in_exactly_one_group(name):
    base = base_of(name)
    named = [parameter_name(g, part) for g in base.description.groups for part in g.parts]
    assert sorted(named) == sorted(n for n, _ in base.module.named_parameters())
    assert base.description.num_blocks == 2
    heads = [g for g in base.description.groups if g.kind == "head"]
    assert len(heads) == (0 if CASES[name][0] == "causal-lm" else 1)
    assert all(g.block in (0, 1) for g in base.description.groups if "layer" in g.name and g.linear)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_linear_dimensions_are_out_then_in(name):
    base = base_of(name)
    role = {"bert": "dense", "gpt2": "c_fc"}[name]
    group = [g for g in base.description.groups if g.role == role and g.linear][
        -1 if name == "gpt2" else 1
    ]
    assert sorted(group.linear) == sorted({"bert": (32, 16), "gpt2": (64, 16)}[name])
    assert group.linear[0] > group.linear[1]


@pytest.mark.parametrize("name", CASES)
def test_a_state_changes_the_model_and_leaves_no_trace(name):
    model, inputs = AdaptedModel(base_of(name)), inputs_of(name)
    untouched = logits(model, inputs)
    first, second = a_state(model.base), a_state(model.base, seed=1)
    model.apply(first, 2.0)
    adapted = logits(model, inputs)
    assert (adapted - untouched).abs().max() > 1e-3
    model.apply(second, 2.0)
    assert not torch.equal(logits(model, inputs), adapted)
    model.apply(first, 2.0)
    assert torch.equal(logits(model, inputs), adapted)
    model.apply({}, 2.0)
    assert torch.equal(logits(model, inputs), untouched)


def test_applying_a_thousand_times_does_not_drift():
    model, inputs = AdaptedModel(base_of("bert-mean")), inputs_of("bert-mean")
    state = a_state(model.base)
    model.apply(state, 2.0)
    before = logits(model, inputs)
    for _ in range(1000):
        model.apply(state, 2.0)
    assert torch.equal(logits(model, inputs), before)


def test_reading_gives_back_what_was_applied():
    model = AdaptedModel(base_of("bert-mean"))
    state = a_state(model.base)
    model.apply(state, 2.0)
    for key, value in model.read(state).items():
        np.testing.assert_allclose(value, state[key], atol=1e-6, err_msg=str(key))


def test_a_low_rank_group_adds_scale_times_b_a():
    model, inputs = AdaptedModel(base_of("bert-mean")), inputs_of("bert-mean")
    group = next(g for g in model.base.description.groups if g.linear)
    a, b = initial_factors(group.linear, 2, rng_for(0))
    b = rng_for(1).normal(size=b.shape).astype(np.float32)
    head = {ParamKey(HEAD, "weight"): np.eye(4, 16, dtype=np.float32)}
    model.apply(dict(zip(keys_of(group.name), (a, b), strict=True)) | head, 0.5)
    adapted = logits(model, inputs)
    model.apply(head, 0.5)
    weight = model.module.get_submodule(group.name).weight
    with torch.no_grad():
        weight += 0.5 * torch.from_numpy(b @ a)
    torch.testing.assert_close(adapted, logits(model, inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert-mean", "gpt2", "llama", "vit-mean"])
def test_the_fused_forward_is_pefts_own(name):
    """Outputs and gradients, against the layers' class."""
    model, inputs = AdaptedModel(base_of(name)), inputs_of(name)
    state = a_state(model.base)
    model.apply(state, 0.7)
    ranks = {key.group: value.shape[0] for key, value in state.items() if key.part == "lora_A"}
    trainable = model.trainable({group: LowRank(rank=rank) for group, rank in ranks.items()})

    def outcome():
        for parameter in trainable.values():
            parameter.grad = None
        scores = model.logits(inputs)
        scores.square().mean().backward()
        return scores.detach(), [p.grad.clone() for p in trainable.values()]

    ours, our_gradients = outcome()
    for module in model.module.modules():
        module.__dict__.pop("forward", None)  # back to the class's own
    theirs, their_gradients = outcome()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(our_gradients, their_gradients, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["bert-mean", "gpt2", "vit"])
def test_merged_pairs_are_part_of_the_model_and_leave_no_trace(name):
    """Merged apart or joined into the factors, the model is the same; GPT-2 keeps W transposed."""
    model, inputs = AdaptedModel(base_of(name)), inputs_of(name)
    state, rng = dict(a_state(model.base)), np.random.default_rng(3)
    untouched = logits_of_empty(model, inputs)
    group = next(key.group for key in state if key.part == "lora_A")
    d_in, d_out = state[ParamKey(group, "lora_A")].shape[1], len(state[ParamKey(group, "lora_B")])
    for index, rank in enumerate((2, 3)):
        pair = rng.normal(size=(rank, d_in)), 0.3 * rng.normal(size=(d_out, rank))
        state |= zip(merged_keys(group, index), (f.astype(np.float32) for f in pair), strict=True)
    model.apply(state, 2.0)
    apart = logits(model, inputs)
    without = {key: value for key, value in state.items() if not is_merged(key)}
    model.apply(without, 2.0)
    assert not torch.allclose(logits(model, inputs), apart, atol=1e-3)
    model.apply(joined(state), 2.0)
    torch.testing.assert_close(logits(model, inputs), apart, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of_empty(model, inputs), untouched, atol=0, rtol=0)


def logits_of_empty(model, inputs):
    model.apply({}, 2.0)
    return logits(model, inputs)


def test_exactly_the_planned_tensors_move():
    model, inputs = AdaptedModel(base_of("bert-mean")), inputs_of("bert-mean")
    state = a_state(model.base)
    model.apply(state, 2.0)
    linear = [g for g in model.base.description.groups if g.linear]
    norm = next(g for g in model.base.description.groups if g.kind == "norm")
    ranks = {key.group: value.shape[0] for key, value in state.items() if key.part == "lora_A"}
    plan = {
        linear[0].name: LowRank(rank=ranks[linear[0].name], train_a=False),
        norm.name: Dense(),
        HEAD: Dense(),
    }
    trainable = model.trainable(plan)
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    model.logits(inputs).square().sum().backward()
    torch.optim.AdamW(trainable.values(), lr=0.1).step()
    moved = {n for n, p in model.module.named_parameters() if not torch.equal(p, before[n])}
    assert len(moved) == len(trainable) == 1 + 2 + 2
    assert all(n.startswith((f"{linear[0].name}.lora_B", norm.name, "classifier")) for n in moved)


def test_nothing_below_the_deepest_trained_group_is_differentiated():
    model, inputs = AdaptedModel(base_of("bert-mean")), inputs_of("bert-mean")
    state = a_state(model.base)
    model.apply(state, 2.0)
    needs = {}
    for name, module in model.module.named_modules():
        if name.endswith(("layer.0", "layer.1")):
            module.register_forward_hook(
                lambda m, i, out, name=name: needs.__setitem__(name[-1], out[0].requires_grad)
            )
    top = {
        key.group: LowRank(rank=value.shape[0])
        for key, value in state.items()
        if key.part == "lora_A" and ".layer.1." in key.group
    }
    model.trainable(top)
    model.logits(inputs)
    assert needs == {"0": False, "1": True}


def test_what_a_model_cannot_do_is_named():
    model = AdaptedModel(base_of("bert-mean"))
    ghost = dict(
        zip(keys_of(GroupName("ghost")), initial_factors((2, 2), 1, rng_for(0)), strict=True)
    )
    with pytest.raises(ModelError, match="ghost"):
        model.apply(ghost, 1.0)
    with pytest.raises(ModelError, match=r"head\.weight has shape"):
        model.apply({ParamKey(HEAD, "weight"): np.zeros((1, 1), np.float32)}, 1.0)
    model.apply({}, 1.0)
    query = next(g.name for g in model.base.description.groups if g.linear)
    with pytest.raises(ModelError, match=r"rank 3, the state has rank None"):
        model.trainable({query: LowRank(rank=3)})
    with pytest.raises(ModelError, match="ghost"):
        model.trainable({GroupName("ghost"): Dense()})
    with pytest.raises(ModelError, match="features need"):
        AdaptedModel(base_of("bert")).features(inputs_of("bert"))


def test_the_same_recipe_gives_the_same_bits_and_leaves_the_random_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = base_of("vit"), base_of("vit")
    assert torch.rand(1) == expected
    assert first.description == second.description
    other = build_base(recipe_of("vit"), num_labels=NUM_LABELS, vocab_size=None, seed=1)
    assert other.description.base_digest != first.description.base_digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "/no/such/model", "architecture": None, "config": {}}, "/no/such/model"),
        ({"architecture": "nonesuch"}, "nonesuch"),
        ({"config": {"hiden_size": 8}}, "did you mean 'hidden_size'"),
    ],
)
def test_a_recipe_that_cannot_be_realised_says_why(changes, words):
    with pytest.raises(ModelError, match=words):
        base_of("bert", **changes)


HEADS = [("bert-mean", h) for h in ("cosine", "simplex", "random-features")]


@pytest.mark.parametrize(("name", "head"), [*((name, "linear") for name in CASES), *HEADS])
def test_a_published_adapter_gives_the_same_logits(name, head, tmp_path):
    """Written by NumPy alone, read by peft on the untouched base; the merged model likewise."""
    base = base_of(name, head=head, random_features=30)
    model, inputs, folder = AdaptedModel(base), inputs_of(name), tmp_path / "adapter"
    state = a_state(model.base)
    model.apply(state, 2.0)
    expected = logits(model, inputs)
    publish(folder, model, state, 2.0)
    loaded = PeftModel.from_pretrained(load_base(folder), str(folder)).eval()
    with torch.no_grad():
        assert (loaded(**inputs).logits - expected).abs().max() <= 1e-5
    merge(folder, tmp_path / "merged")
    with torch.no_grad():
        assert (load_merged(tmp_path / "merged")(**inputs).logits - expected).abs().max() <= 1e-4


def publish(folder, model: AdaptedModel, state, scale: float) -> None:
    labels = tuple(str(i) for i in range(NUM_LABELS))
    classifies = model.base.recipe.task != "causal-lm"
    write_adapter(
        folder,
        recipe=SharedRecipe(
            seed=0,
            num_clients=1,
            model=model.base.recipe,
            data=DataRecipe(source="jsonl"),
            stream=StreamRecipe(kind="domain-incremental"),
            partition=PartitionRecipe(),
        ),
        description=model.base.description,
        tasks=(TaskInfo(name="t", labels=labels if classifies else ()),),
        tensors=state,
        scale=scale,
        base_values=model.base_values([g.name for g in model.base.description.groups]),
    )


def test_an_adapter_of_norms_and_head_alone_is_published_too(tmp_path):
    model, inputs = AdaptedModel(base_of("bert-mean")), inputs_of("bert-mean")
    norm = [g for g in model.base.description.groups if g.kind == "norm"][1]
    state = {ParamKey(norm.name, "weight"): np.full(16, 0.3, np.float32)} | {
        key: value
        for key, value in a_state(model.base).items()
        if key.group == HEAD or ".layer.0." in key.group
    }
    model.apply(state, 1.0)
    publish(tmp_path / "a", model, state, 1.0)
    loaded = PeftModel.from_pretrained(load_base(tmp_path / "a"), str(tmp_path / "a")).eval()
    with torch.no_grad():
        assert (loaded(**inputs).logits - logits(model, inputs)).abs().max() <= 1e-5


def test_a_head_alone_is_published_too(tmp_path):
    model, inputs = AdaptedModel(base_of("bert-mean")), inputs_of("bert-mean")
    state = {key: value for key, value in a_state(model.base).items() if key.group == HEAD}
    model.apply(state, 1.0)
    publish(tmp_path / "a", model, state, 1.0)
    loaded = PeftModel.from_pretrained(load_base(tmp_path / "a"), str(tmp_path / "a")).eval()
    with torch.no_grad():
        assert (loaded(**inputs).logits - logits(model, inputs)).abs().max() <= 1e-6


def test_a_folder_that_is_no_adapter_says_so(tmp_path):
    with pytest.raises(ModelError, match="no adapter folder of perennial"):
        load_base(tmp_path)


def test_masked_classes_get_no_gradient():
    scores = torch.randn(5, 4, requires_grad=True)
    allowed = torch.tensor([True, False, True, False])
    losses = masked_cross_entropy(scores, torch.tensor([0, 2, 0, 2, 0]), allowed)
    losses.sum().backward()
    assert (scores.grad[:, ~allowed] == 0).all()
    assert (scores.grad[:, allowed] != 0).all()
    by_hand = torch.nn.functional.cross_entropy(
        scores[:, allowed], torch.tensor([0, 1, 0, 1, 0]), reduction="none"
    )
    torch.testing.assert_close(losses, by_hand)


def test_completion_loss_is_the_mean_over_the_completion_alone():
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 5, 7), torch.full((2, 5), -100)
    labels[0, 3:], labels[1, 2:4] = torch.tensor([1, 2]), torch.tensor([3, 4])
    losses = completion_losses(scores, labels)
    log = scores.log_softmax(-1)
    assert losses[0].item() == pytest.approx(-(log[0, 2, 1] + log[0, 3, 2]).item() / 2, rel=1e-5)
    assert losses[1].item() == pytest.approx(-(log[1, 1, 3] + log[1, 2, 4]).item() / 2, rel=1e-5)


def test_a_real_checkpoint_adapts_and_exports(minilm, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = ModelRecipe(task="sequence-classification", name=str(minilm), pooling="mean")
    model = AdaptedModel(build_base(recipe, num_labels=NUM_LABELS, vocab_size=None, seed=0))
    linear = [g for g in model.base.description.groups if g.kind == "linear"]
    assert len(linear) == 36
    inputs, state = inputs_of("bert"), a_state(model.base)
    model.apply(state, 2.0)
    publish(tmp_path / "a", model, state, 2.0)
    loaded = PeftModel.from_pretrained(load_base(tmp_path / "a"), str(tmp_path / "a")).eval()
    with torch.no_grad():
        assert (loaded(**inputs).logits - logits(model, inputs)).abs().max() <= 1e-4
