"""Figures of the report and of the dashboard: inline SVG that a strict policy lets through.

Nothing here has a ``style`` attribute: colours are classes that ``static/palette.css`` explains,
sizes are presentation attributes.  Long runs are thinned, and the figure says so.
"""

from pathlib import Path
from typing import Final

from orchestrator.figures.inputs import Scored, StepCosts, StepTotals, Traced

STATIC: Final = Path(__file__).parent / "static"  # what the report writes inline, and pages link to


def style_sheet() -> str:
    """Colours, figures, tables: what the report and the dashboard look like."""
    return "\n".join((STATIC / f"{name}.css").read_text("utf-8") for name in ("palette", "page"))


__all__ = ["STATIC", "Scored", "StepCosts", "StepTotals", "Traced", "style_sheet"]
