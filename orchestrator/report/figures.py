"""What the figures of comparisons need of a run."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.figures import StepCosts, Traced
from orchestrator.results import Outline


def traced(shown: Outline, steps: Sequence[StepCosts]) -> Traced:
    """A run of a comparison, from its document and its steps."""
    return Traced(
        name=f"{shown['name']} ({shown['run_id'][-4:]})",
        average_accuracy=shown["average_accuracy"],
        last_row=shown["last_row"],
        steps=steps,
    )
