"""The peak of a whole process that trains MiniLM, with a limit of 1 GiB and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

GIB = 2**30
BATCH, TOKENS = "32", "96"

pytestmark = pytest.mark.slow


def peak_of(model: Path, folder: Path, limit: int) -> dict[str, Any]:
    folder.mkdir()
    words = [str(model), str(folder), str(limit), BATCH, TOKENS]
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients.peak_of_training", *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_plan_for_one_gibibyte_stays_within_it_and_another_would_not(minilm, tmp_path):
    free = peak_of(minilm, tmp_path / "free", 0)
    assert free["kind"] == "cpu"
    assert free["peak"] > GIB
    small = peak_of(minilm, tmp_path / "small", GIB)
    assert small["kind"] == "edge"
    assert 0 < small["micro_batch_size"] < int(BATCH)
    assert small["predicted_peak_bytes"] <= GIB
    assert small["peak"] <= GIB
