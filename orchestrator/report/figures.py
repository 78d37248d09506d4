"""The figures of the report's pages that read whole documents."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from orchestrator.figures import Traced, scores
from orchestrator.results import Show


def acc_over(shows: Sequence[Show], unit: str) -> Markup:
    """Mean accuracy over the tasks learnt so far of several runs, against ``unit``."""
    return scores.acc_over([traced(shown) for shown in shows], unit)


def traced(shown: Show) -> Traced:
    """A run of a comparison, from its document."""
    return Traced(
        name=f"{shown['name']} ({shown['run_id'][-4:]})",
        average_accuracy=shown["average_accuracy"],
        last_row=shown["last_row"],
        steps=shown["rounds"],
    )
