"""What each value set becomes, in a few lines: objects, and what their containers start.

After a change that is meant: PERENNIAL_GOLDEN=write python -m pytest tests/helm/test_golden.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("gotpl")

from tests.helm.chart import SETS, containers, of_set, pods

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in SETS.iterdir())


def summary(name):
    rendered = of_set(name)
    started = dict(pods(rendered))
    lines = []
    for thing in rendered.objects:
        owner = f"{thing['kind']} {thing['metadata']['name']}"
        lines.append(owner)
        for each in (owner, f"{owner} head", f"{owner} worker"):
            for container in containers(started[each]) if each in started else ():
                words = [*container.get("command", ()), *container.get("args", ())]
                lines.append(f"  {container['name']}: {' '.join(' '.join(words).split())}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_value_set_becomes_what_it_did(name):
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("PERENNIAL_GOLDEN") == "write":
        path.write_text(summary(name))
    assert summary(name) == path.read_text()


def test_no_golden_file_is_left_over():
    assert sorted(path.stem for path in GOLDEN.iterdir()) == NAMES
