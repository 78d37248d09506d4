"""SSR: which of its own answers a language model is taught, and that they are kept."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from clients.data.batches import CompletionInputs
from clients.data.encoding import encode_completions
from clients.data.tokenizer import ByteTokenizer
from clients.local_run import local_run
from clients.methods import ssr
from clients.methods.ssr import agrees
from clients.model import completion_losses
from clients.state_store import ClientStateStore
from clients.trainer import LocalTrainer
from clients.workshop import shard_of
from strategies.types import ClientFailure, StrategyChoice
from strategies.wire import decode_result, encode_assignment
from tests.clients.test_methods import same, trained
from tests.clients.test_trainer import IDS, Lab, lab
from tests.conftest import tiny_config

__all__ = ["lab"]  # a fixture

MODEL = {
    "task": "causal-lm",
    "name": "from-config",
    "architecture": "llama",
    "tokenizer": "bytes",
    "max_length": 24,
    "max_new_tokens": 8,
    "config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
}


@pytest.fixture
def tutor(tmp_path):
    """Three clients of a language model that has half learnt to say one of two things."""
    rows = [
        {"prompt": f"{task} {i % 5}:", "completion": f"ab c{'de'[i % 2]}", "task": task}
        for task in ("one", "two")
        for i in range(60)
    ]
    for name in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    bench = Lab(
        tmp_path,
        tiny_config(
            model=MODEL,
            data={
                "source": "jsonl",
                "train": str(tmp_path / "train.jsonl"),
                "test": str(tmp_path / "test.jsonl"),
            },
            stream={"kind": "domain-incremental", "task_column": "task"},
            partition={"kind": "iid"},
            learning__local_steps=80,
            learning__learning_rate=1e-2,
            learning__methods=[{"name": "finetune"}],
            strategy__layer_selection={
                "name": "all",
                "kinds": ["linear", "norm", "embedding", "other"],
            },
        ),
    )
    plan = bench.plan(1, "school")
    state = bench.close(plan, [bench.ask(order) for order in plan.orders]).state
    bench.state = dataclasses.replace(bench.state, tensors=state.tensors, changed=state.changed)
    return bench


def ask(bench, step, *methods, run_id="run", trainer=None, **params):
    """The third client's answer to one step."""
    order = bench.plan(step, run_id).orders[2]
    choices = tuple(StrategyChoice(name=name, params=params) for name in methods)
    work = dataclasses.replace(order.assignment.work, methods=choices, steps=4)
    assignment = dataclasses.replace(order.assignment, work=work)
    message = encode_assignment(assignment, order.tensors)
    return decode_result((trainer or bench.trainer).answer(assignment.client_id, message))


def state_before(bench, step, run_id="run"):
    store = ClientStateStore(bench.trainer.settings.state_folder)
    return store.load(run_id, IDS[2], before_step=step)


def opened(bench, step, state):
    """The third client's local run with the received model applied."""
    order = bench.plan(step).orders[2]
    assignment, trainer = order.assignment, bench.trainer
    shop = trainer._workshop(assignment.recipe)
    shop.model.apply(trainer._assemble(shop, assignment, order.tensors), assignment.scale)
    shop.model.module.eval()
    shard = shard_of(shop, assignment.client_id)
    return local_run(shop, shard, assignment, assignment.work, state)


def test_accepted_answers_are_likelier_than_their_references(tutor):
    update = ask(tutor, 1, "ssr")
    state = state_before(tutor, 2)
    own = opened(tutor, 1, state)
    reference = opened(tutor, 1, dataclasses.replace(state, targets=None))
    ids = state.targets.ids
    assert update.metrics["accepted"] == len(ids) / len(own.new_ids) > 0.5
    with torch.no_grad():
        losses = []
        for run in (own, reference):
            inputs = run.tensors_of(ids)
            losses.append(completion_losses(run.model.logits(inputs), inputs["labels"]))
    assert (losses[0] <= losses[1] + 1e-6).all()
    assert (losses[0] < losses[1] - 0.01).any()  # some references say the other thing


def test_a_judge_that_never_accepts_gives_plain_training(tutor, monkeypatch):
    plain = ask(tutor, 1, "finetune", run_id="a")
    assert "accepted" not in plain.metrics
    own = ask(tutor, 1, "ssr", run_id="b")
    assert not same(plain, own)
    monkeypatch.setattr(ssr, "agrees", lambda answer, reference, agreement: False)
    strict = ask(tutor, 1, "ssr", run_id="c")
    assert strict.metrics["accepted"] == 0.0
    assert same(plain, strict)


def test_targets_are_chosen_once_per_task_and_outlive_the_process(tutor):
    ask(tutor, 1, "ssr")
    first = state_before(tutor, 2).targets
    steady = ask(tutor, 2, "ssr", agreement=1.0)  # the judge is not asked again
    again = ask(tutor, 2, "ssr", trainer=LocalTrainer(tutor.trainer.settings))
    assert same(steady, again)
    assert steady.metrics["accepted"] == again.metrics["accepted"] > 0
    kept = state_before(tutor, 3).targets
    np.testing.assert_array_equal(kept.ids, first.ids)
    np.testing.assert_array_equal(kept.tokens, first.tokens)
    ask(tutor, 4, "ssr", agreement=1.0)
    assert not np.isin(state_before(tutor, 5).targets.ids, first.ids).any()


def test_answers_without_an_end_or_without_room_are_not_taken(tutor, monkeypatch):
    ask(tutor, 1, "finetune")
    run = opened(tutor, 1, state_before(tutor, 2))
    room = MODEL["max_length"] - run.dataset.train.prompt_lengths(run.new_ids)
    assert len(set(room.tolist())) == 1
    for end, accepted in ((None, 0), (room[0], 0), (room[0] - 1, len(run.new_ids)), (0, len(room))):
        rows = np.full((len(run.new_ids), 30), 100)
        if end is not None:
            rows[:, end:] = run.dataset.train.tokenizer.eos_id
        monkeypatch.setattr(ssr, "generated", lambda model, split, ids, rows=rows: rows[: len(ids)])
        monkeypatch.setattr(ssr, "agrees", lambda answer, reference, agreement: True)
        ssr.SelectiveSelfTargets().task_start(run)
        assert len(run.state.targets.ids) == accepted
        assert all(len(row) == end + 1 for row in run.state.targets.of(run.new_ids).values())
        longest = run.tensors_of(run.new_ids)["input_ids"].shape[1]
        assert longest <= MODEL["max_length"]


def test_it_wants_a_language_model(lab):
    answer = trained(lab(), "ssr", step=1)
    assert isinstance(answer, ClientFailure)
    assert "causal-lm" in answer.detail


@pytest.mark.parametrize(
    ("answer", "reference", "agreement", "accepted"),
    [
        ("the cat sat", "The cat sat.", 1.0, True),
        ("a cat sat", "the cat sat", 0.66, True),  # 2·2/(3+3)
        ("a cat sat", "the cat sat", 0.67, False),
        ("yes yes yes", "yes no no", 0.34, False),  # a word counts as often as both have it
        ("so it is 42.", "42", 0.4, True),  # 2·1/(4+1)
        ("so it is 42.", "42", 0.41, False),
        ("42 or 43", "42", 0.1, False),  # it ends in another word
        ("", "word here", 0.1, False),
        ("...", "...", 0.1, False),
    ],
)
def test_the_judge_compares_words(answer, reference, agreement, accepted):
    assert agrees(answer, reference, agreement) is accepted


def test_answers_take_the_place_of_completions():
    tokenizer = ByteTokenizer()
    prompts = tokenizer.encode_prompts(["a:", "bcd:"])
    completions = tokenizer.encode_plain(["xy", "z"])
    inputs = CompletionInputs(
        tokens=encode_completions(tokenizer, prompts, completions, 16), tokenizer=tokenizer
    )
    ids, answer = np.array([1, 0]), np.array([*tokenizer.encode_plain(["long"])[0], 2])
    plain, none = inputs.collate(ids), inputs.collate_answered(ids, {})
    own = inputs.collate_answered(ids, {1: answer})
    for name, value in plain.items():
        np.testing.assert_array_equal(none[name], value)
    np.testing.assert_array_equal(own["input_ids"][0], [*prompts[1], *answer])
    assert own["labels"][0].tolist() == [-100] * len(prompts[1]) + answer.tolist()
    assert own["labels"][1][own["labels"][1] >= 0].tolist() == [*completions[0], 2]
    assert own["attention_mask"].sum(axis=1).tolist() == [
        len(prompts[1]) + 5,
        len(prompts[0]) + 3,
    ]
