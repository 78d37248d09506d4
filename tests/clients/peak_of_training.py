"""A program of its own: one client trains as its profile's limit asks, and says what it took.

Arguments: a MiniLM folder, a working folder, the limit in bytes (0: none), the batch size and the
tokens of a text.  Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from clients.settings import ClientSettings
from clients.trainer import LocalTrainer
from orchestrator.config import parse_config
from orchestrator.federation import agree, initial_state
from orchestrator.fleet import Fleet
from orchestrator.memory import predictions
from orchestrator.planner import plan_step
from strategies.cost import CostModel
from strategies.types import Update, client_ids
from strategies.wire import (
    decode_profile,
    decode_result,
    encode_assignment,
    encode_recipe,
)

WORDS = ("rain", "tax", "bread", "train", "bank", "song", "river", "phone")


def main(model: str, folder: str, limit: int, batch: int, tokens: int) -> None:
    """Describe, plan one round of a step, train it, print."""
    data = Path(folder) / "texts.jsonl"
    rows = [
        {"text": " ".join([WORDS[i % 2], *[WORDS[(i * 7 + j) % 8] for j in range(tokens)]]),
         "label": WORDS[i % 2]}
        for i in range(2 * batch)
    ]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, rows)))
    few = Path(folder) / "few.jsonl"
    few.write_text("\n".join(map(json.dumps, rows[:2])))
    config = parse_config(
        {
            "name": "peak",
            "model": {
                "task": "sequence-classification", "name": model, "pooling": "mean",
                "max_length": tokens, "config": {"hidden_dropout_prob": 0.0,
                                                 "attention_probs_dropout_prob": 0.0},
            },
            "data": {"source": "jsonl", "train": str(data), "test": str(few)},
            "stream": {"kind": "class-incremental", "classes_per_task": 2},
            "federation": {"clients": 1, "transport": "in-process"},
            "learning": {"rounds_per_task": 1, "local_steps": 1, "batch_size": batch},
            "strategy": {"rank": {"name": "fixed", "rank": 8}},
        }
    )  # fmt: skip
    trainer = LocalTrainer(
        ClientSettings(
            cache_folder=Path(folder) / "cache", state_folder=Path(folder) / "state",
            data_folder=Path(folder), kind="auto", memory_limit_bytes=limit or None,
        )
    )  # fmt: skip
    (client,) = client_ids(1)
    request = encode_recipe(config.shared_recipe().model_dump_json(), ())
    profile = decode_profile(trainer.answer(client, request))[0]
    federation = agree([profile])
    found: dict[str, object] = {"kind": profile.kind, "resident": profile.resident_bytes}
    state = initial_state(config, federation)
    for index in (0, 1):  # scored untrained, then trained
        at = replace(state, step_index=index)
        plan = plan_step("run", config, federation, at, Fleet())
        assert plan is not None
        if not plan.orders:
            found["notes"] = plan.notes
            break
        order = plan.orders[0]
        answer = decode_result(
            trainer.answer(client, encode_assignment(order.assignment, order.tensors))
        )
        assert isinstance(answer, Update), answer
        found["peak"] = answer.peak_memory_bytes
        if work := order.assignment.work:
            costs = CostModel.of(plan.view.groups, plan.view.budget, profile)
            found |= predictions(work, costs, order.assignment.groups, profile)
            found["step_memory"] = answer.metrics["step_memory_bytes"]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
