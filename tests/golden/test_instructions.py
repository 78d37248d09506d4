"""A causal language model on an instruction stream: completions only, answers generated."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest
from peft import PeftModel

from clients.model import load_base
from tests.conftest import REPOSITORY, tiny_config


@pytest.fixture
def instructions(tmp_path, monkeypatch):
    """A run file for a tiny language model on three kinds of instructions, one round each."""
    folder = tmp_path
    script = str(REPOSITORY / "examples" / "make_instructions.py")
    arguments = [script, "--to", str(folder), "--train", "40", "--test", "12"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(script, run_name="__main__")
    return lambda *methods, **stream: tiny_config(
        model={
            "task": "causal-lm",
            "name": "from-config",
            "architecture": "llama",
            "tokenizer": "bytes",
            "max_length": 48,
            "max_new_tokens": 4,
            "config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "tie_word_embeddings": False,
            },
        },
        data={
            "source": "jsonl",
            "train": str(folder / "train.jsonl"),
            "test": str(folder / "test.jsonl"),
        },
        stream={"kind": "domain-incremental", "task_column": "task", **stream},
        partition={"kind": "iid"},
        learning__rounds_per_task=1,
        learning__methods=[{"name": name} for name in methods],
        strategy__layer_selection={
            "name": "all",
            "kinds": ["linear", "norm", "embedding", "other"],
        },
    )


def test_a_language_model_learns_instructions_offline(home, run_here, instructions):
    run_id = run_here(instructions("er"))
    store = home.store()
    record, rounds = store.get_run(run_id), store.rounds(run_id)
    assert len(record.task_names) == 3
    final = rounds[-1].scores
    assert sum(score.num_examples for score in final) == 36
    assert all(score.loss_sum > 0 for score in final)
    losses = [r.metrics["loss"] for r in rounds if r.kind == "train"]
    assert losses[-1] < losses[0]
    model = PeftModel.from_pretrained(load_base(record.adapter_path), record.adapter_path)
    assert model.peft_config["default"].r == 2


def test_clients_are_taught_what_they_would_answer_themselves(home, run_here, instructions):
    run_id = run_here(instructions("ssr", "dmt", "dft"))
    rounds = [record for record in home.store().rounds(run_id) if record.kind == "train"]
    shares = [reply.metrics["accepted"] for record in rounds for reply in record.replies]
    assert len(shares) == 9
    assert all(0 <= share <= 1 for share in shares)


def test_a_language_model_notices_boundaries_by_its_loss(home, run_here, instructions):
    run_id = run_here(instructions("er", boundaries="detected"))
    replies = [x for r in home.store().rounds(run_id) if r.kind == "train" for x in r.replies]
    assert all(np.isfinite(reply.metrics["boundary_level"]) for reply in replies)
    levels = [reply.metrics["boundary_level"] for reply in replies[:3]]
    assert all(4 < level < 8 for level in levels)  # ln 259 is 5.6: an untrained model of bytes
