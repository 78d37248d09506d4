"""Small runs with any number of clients for ``benchmarks.scale``: their data and run files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.config import RunConfig, parse_config
from strategies.rng import rng_for

_CLASSES_PER_TASK: Final = 2
_WORDS_PER_CLASS: Final = 12
_WORDS_PER_TEXT: Final = 3
_TEST_SHARE: Final = 5  # one held-out example per so many


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run on made-up sentences with an encoder that learns them in next to no time.

    ``examples`` are written for training and a fifth as many to be held out, whatever the number
    of clients, unless there are so few that most clients would have none.
    """

    clients: int = 100
    cohort: int = 10
    blocks: int = 1
    rank: int = 2
    tasks: int = 2
    rounds_per_task: int = 5
    examples: int = 2_000
    transport: str = "in-process"

    def config(self, folder: Path) -> RunConfig:
        """The validated run file; its data is written to ``folder``."""
        return parse_config(
            {
                "name": f"scale-{self.clients}",
                "seed": 0,
                "model": _model(self.blocks),
                "data": {"source": "jsonl", **_written(self, folder)},
                "stream": {
                    "kind": "class-incremental",
                    "classes_per_task": _CLASSES_PER_TASK,
                },
                "partition": {"kind": "iid"},
                "federation": {
                    "clients": self.clients,
                    "cohort": self.cohort,
                    "transport": self.transport,
                },
                "learning": {
                    "rounds_per_task": self.rounds_per_task,
                    "local_steps": 1,
                    "batch_size": 4,
                    "methods": [{"name": "er"}],
                },
                "replay": {"examples_per_client": 4},
                "strategy": {"rank": {"name": "fixed", "rank": self.rank}},
            }
        )


def _model(blocks: int) -> dict[str, Any]:
    return {
        "task": "sequence-classification",
        "name": "from-config",
        "architecture": "bert",
        "tokenizer": "bytes",
        "pooling": "mean",
        "max_length": 24,
        "config": {
            "hidden_size": 32,
            "num_hidden_layers": blocks,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    }


def _written(job: Job, folder: Path) -> dict[str, str]:
    """The data files of a job, the same ones every time."""
    rng = rng_for(0, "benchmarks", "scale")
    num_classes = job.tasks * _CLASSES_PER_TASK
    words = [
        [
            "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 5))
            for _ in range(_WORDS_PER_CLASS)
        ]
        for _ in range(num_classes)
    ]
    paths = dict[str, str]()
    for split, count in (("train", job.examples), ("test", job.examples // _TEST_SHARE)):
        path = folder / f"{split}-{job.examples}-{job.tasks}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                label = number % num_classes
                drawn = rng.choice(words[label], _WORDS_PER_TEXT)
                row = {"text": " ".join(drawn), "label": f"class-{label:02d}"}
                file.write(json.dumps(row) + "\n")
        paths[split] = str(path)
    return paths
