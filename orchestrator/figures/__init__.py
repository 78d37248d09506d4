"""Figures of the report and of the dashboard: inline SVG that a strict policy lets through.

Nothing here has a ``style`` attribute: colours are classes that ``palette.css`` explains, sizes are
presentation attributes.  Long runs are thinned, and the figure says so.
"""

from pathlib import Path
from typing import Final

from orchestrator.figures.inputs import Scored, StepTotals, Traced

PALETTE: Final = (Path(__file__).parent / "palette.css").read_text(encoding="utf-8")

__all__ = ["PALETTE", "Scored", "StepTotals", "Traced"]
