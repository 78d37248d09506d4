"""The scripts that prepare data for the examples."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clients.data import open_dataset
from strategies.recipe import PartitionRecipe, StreamRecipe
from tests.clients.data_recipes import BYTE_LM, FILES, shared

ROOT = Path(__file__).parents[2]
CLINC = Path(os.environ.get("PERENNIAL_CLINC150") or ROOT.parent / "shared/data/clinc150")


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_instructions_make_a_stream_of_three_tasks(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        done = _run("make_instructions.py", "--to", str(tmp_path / folder), "--train", "40")
        assert done.returncode == 0, done.stderr
    made = [(tmp_path / folder / "train.jsonl").read_text() for folder in ("a", "b")]
    assert made[0] == made[1]
    rows = [json.loads(line) for line in made[0].splitlines()]
    answers = {
        "upper": lambda word: word.upper(),
        "last": lambda word: word[-1] * 3,
        "reverse": lambda word: word[::-1],
    }
    for row in rows:
        task, word = row["prompt"].removesuffix(":").split()
        assert (task, row["completion"]) == (row["task"], answers[task](word))
    recipe = shared(
        model=BYTE_LM, stream=StreamRecipe(kind="domain-incremental", task_column="task")
    )
    dataset = open_dataset(recipe, tmp_path / "cache", tmp_path / "a")
    assert [task.name for task in dataset.tasks] == ["upper", "last", "reverse"]
    assert (len(dataset.train), len(dataset.test)) == (120, 270)
    assert dataset.num_truncated == 0
    train_prompts = {row["prompt"] for row in rows}
    test_rows = (tmp_path / "a" / "test.jsonl").read_text().splitlines()
    assert not train_prompts & {json.loads(line)["prompt"] for line in test_rows}


def test_instructions_refuse_more_words_than_there_are(tmp_path: Path) -> None:
    done = _run("make_instructions.py", "--to", str(tmp_path), "--train", "990")
    assert done.returncode == 2
    assert "together at most 1000" in done.stderr


def test_rotated_digits_are_the_same_digits_turned(tmp_path: Path) -> None:
    done = _run("make_rotated_digits.py", "--to", str(tmp_path), "--angles", "0", "90")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    half = len(rows) // 2
    assert {row["rotation"] for row in rows[:half]} == {"0°"}
    for straight, turned in zip(rows[:half], rows[half:], strict=True):
        assert (straight["label"], turned["rotation"]) == (turned["label"], "90°")
    upright, turned = (np.array(rows[index]["image"]) for index in (0, half))
    np.testing.assert_array_equal(np.rot90(upright), turned)


@pytest.mark.skipif(
    not (CLINC / "data_full.json").is_file(),
    reason="no CLINC150 here; name its folder in PERENNIAL_CLINC150",
)
def test_clinc150_becomes_ten_domains_of_fifteen_intents(tmp_path: Path) -> None:
    done = _run("prepare_clinc150.py", "--source", str(CLINC), "--to", str(tmp_path))
    assert done.returncode == 0, done.stderr
    domains = json.loads((CLINC / "domains.json").read_text())
    embedded = runpy.run_path(str(ROOT / "examples" / "prepare_clinc150.py"))["DOMAINS"]
    assert [(name, labels.split()) for name, labels in embedded.items()] == list(domains.items())
    recipe = shared(
        model=BYTE_LM.model_copy(update={"task": "sequence-classification", "max_length": 160}),
        data=FILES,
        stream=StreamRecipe(kind="class-incremental", task_column="domain"),
        partition=PartitionRecipe(kind="dirichlet"),
        num_clients=20,
    )
    dataset = open_dataset(recipe, tmp_path / "cache", tmp_path)
    assert [task.name for task in dataset.tasks] == list(domains)
    assert [set(task.labels) for task in dataset.tasks] == [set(v) for v in domains.values()]
    assert len(dataset.label_names) == 150
    assert (len(dataset.train), len(dataset.test)) == (15000, 4500)
    assert sum(sum(dataset.shard(client).num_train) for client in range(20)) == 15000
