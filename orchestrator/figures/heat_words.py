"""A heat map's cells, and the same in words and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from orchestrator.figures.frame import Band


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Cells by row and column; None is nothing to show, a negative value is of another ``kind``.

    ``write`` words a value.  ``label`` is what a screen reader says, ``bands`` lie on the columns.
    ``columns`` names them; without names they are numbered from 1.
    """

    label: str
    x_label: str
    row_label: str
    rows: Sequence[str]
    cells: Sequence[Sequence[float | None]]
    write: Callable[[float], str]
    columns: Sequence[str] = ()
    bands: Sequence[Band] = ()
    kind: str = ""


def aria(chart: HeatMap, values: Sequence[float]) -> str:
    """What a screen reader says in place of the drawing."""
    plain = [value for value in values if value >= 0] or values
    low, high = chart.write(min(plain)), chart.write(max(plain))
    width = max(len(row) for row in chart.cells)
    return f"{chart.label}: {len(chart.rows)} rows, {width} columns, from {low} to {high}"


def scale_of(chart: HeatMap, top: float) -> str:
    """What the shades mean."""
    swatches = "".join(f'<i class="q{i}"></i>' for i in range(1, 6))
    others = any(value < 0 for row in chart.cells for value in row if value is not None)
    other = f'; <i class="q-other"></i> {escape(chart.kind)}' if others else ""
    return (
        f'<p class="scale">{swatches} up to {escape(chart.write(top))}{other}; blank: nothing</p>'
    )


def table_of(chart: HeatMap) -> str:
    """Lowest, mean and highest of every row, to be opened."""
    rows = "".join(_table_row(chart, i) for i in range(len(chart.rows)))
    return (
        "<details><summary>In numbers</summary>"
        '<div class="scroll tall pin" tabindex="0" role="region" '
        f'aria-label="{escape(chart.label)}, in numbers"><table>'
        f"<caption>{escape(chart.label)}</caption>"
        f'<thead><tr><th scope="col">{escape(chart.row_label)}</th><th scope="col">columns</th>'
        '<th scope="col">lowest</th><th scope="col">mean</th><th scope="col">highest</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div></details>"
    )


def _table_row(chart: HeatMap, index: int) -> str:
    known = [value for value in chart.cells[index] if value is not None]
    cells = [f"{len(known)} of {len(chart.cells[index])}"]
    if known:
        mean = sum(known) / len(known)
        cells += [chart.write(value) for value in (min(known), mean, max(known))]
    cells += ["–"] * (4 - len(cells))
    body = "".join(f"<td>{escape(text)}</td>" for text in cells)
    return f'<tr><th scope="row">{escape(chart.rows[index])}</th>{body}</tr>'
