"""Write a small instruction stream of three tasks: train.jsonl and test.jsonl.

Columns: prompt, completion, task.  The tasks ask for a word in capitals, for its last letter three
times, and for the word backwards; held-out words never occur in training.  Strings are short enough
for a small byte-level causal LM to learn from within a minute or two.

    python examples/make_instructions.py --to data/instruct
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

LETTERS = "abcdefghij"
WORD_LENGTH = 3
TASKS: dict[str, Callable[[str], str]] = {
    "upper": str.upper,
    "last": lambda word: word[-1] * 3,
    "reverse": lambda word: word[::-1],
}
NUM_WORDS = len(LETTERS) ** WORD_LENGTH


def main() -> None:
    """Write both files."""
    arguments = _arguments()
    words = ["".join(letters) for letters in itertools.product(LETTERS, repeat=WORD_LENGTH)]
    rng = np.random.default_rng(arguments.seed)
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for task in TASKS:
        chosen = [words[i] for i in rng.permutation(NUM_WORDS)]
        rows["train"] += examples(task, chosen[: arguments.train])
        rows["test"] += examples(task, chosen[arguments.train :][: arguments.test])
    arguments.to.mkdir(parents=True, exist_ok=True)
    for split, found in rows.items():
        path = arguments.to / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        print(f"{path}: {len(found)} examples")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a three-task instruction stream.")
    parser.add_argument("--to", type=Path, default=Path("data/instruct"), help="folder to write to")
    parser.add_argument("--train", type=int, default=600, help="training examples per task")
    parser.add_argument("--test", type=int, default=90, help="held-out examples per task")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if min(arguments.train, arguments.test) < 1 or arguments.train + arguments.test > NUM_WORDS:
        parser.error(f"--train and --test must be at least 1 and together at most {NUM_WORDS}")
    return arguments


def examples(task: str, words: Iterable[str]) -> list[dict[str, str]]:
    """One instruction per word."""
    return [
        {"prompt": f"{task} {word}:", "completion": TASKS[task](word), "task": task}
        for word in words
    ]


if __name__ == "__main__":
    main()
