"""Small files, and recipes that read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from strategies.recipe import (
    DataRecipe,
    ModelRecipe,
    PartitionRecipe,
    SharedRecipe,
    StreamRecipe,
)

ANIMALS = ("cat", "cow", "dog", "hen")
BYTE_CLASSIFIER = ModelRecipe(
    task="sequence-classification", name="from-config", architecture="bert", tokenizer="bytes"
)
BYTE_LM = ModelRecipe(
    task="causal-lm", name="from-config", architecture="llama", tokenizer="bytes", max_length=24
)
SMALL_VIT = ModelRecipe(task="image-classification", name="from-config", architecture="vit")
FILES = DataRecipe(source="jsonl", train="train.jsonl", test="test.jsonl")
TWO_BY_TWO = StreamRecipe(kind="class-incremental", classes_per_task=2)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def animal_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """Distinct texts; labels and farms take turns."""
    return [
        {
            "text": f"animal {start + i} says {'x' * (i % 5)}",
            "label": ANIMALS[i % 4],
            "farm": f"farm {i % 3}",
        }
        for i in range(count)
    ]


def write_animals(folder: Path, num_train: int = 40, num_test: int = 12) -> None:
    write_jsonl(folder / "train.jsonl", animal_rows(num_train))
    write_jsonl(folder / "test.jsonl", animal_rows(num_test, start=1000))


def shared(
    *,
    model: ModelRecipe = BYTE_CLASSIFIER,
    data: DataRecipe = FILES,
    stream: StreamRecipe = TWO_BY_TWO,
    partition: PartitionRecipe | None = None,
    num_clients: int = 3,
    seed: int = 7,
) -> SharedRecipe:
    return SharedRecipe(
        seed=seed,
        num_clients=num_clients,
        model=model,
        data=data,
        stream=stream,
        partition=partition or PartitionRecipe(),
    )
