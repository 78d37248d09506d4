"""Inputs that atheris makes, guided by the lines they reach; the report is written as it goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

# Whole packages are instrumented, so what is not looked at is imported outside.
with atheris.instrument_imports(include=["strategies"]):
    import strategies.compression.chain
    import strategies.wire  # noqa: F401

import orchestrator.learning
import orchestrator.shapes
import orchestrator.transport

with atheris.instrument_imports(include=["orchestrator"]):
    import orchestrator.examine  # noqa: F401

from tests.fuzz import targets
from tests.fuzz.running import told

KINDS = ("assignment", "profile", "recipe")
SOURCES = (*targets.MESSAGES, *targets.ASSIGNMENTS, *targets.PROFILES, *targets.RECIPES)


def main() -> None:
    report, *options = sys.argv[1:]
    runs = next(int(o.removeprefix("-runs=")) for o in options if o.startswith("-runs="))
    corpus = Path(options[-1]) / "corpus"
    corpus.mkdir()
    for door in range(len(targets.CASES) + len(KINDS)):
        (corpus / f"seed-{door}").write_bytes(bytes([door]) + SOURCES[door])
    targets.warm_up()
    tally = targets.Tally()

    def take(data: bytes) -> None:
        door, message = (data[0] if data else 0), data[1:]
        doors = len(targets.CASES) + len(KINDS)
        if door % doors < len(targets.CASES):
            targets.update(tally, targets.CASES[door % doors], message)
        else:
            targets.decoded(tally, KINDS[door % doors - len(targets.CASES)], message)
        if tally.inputs >= runs or not tally.inputs % 1000:
            Path(report).write_text(json.dumps(told(tally)))

    atheris.Setup([sys.argv[0], *options[:-1], str(corpus)], take)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
