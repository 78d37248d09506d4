"""A heat map's cells, and the same in words and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from orchestrator.figures.frame import Band


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """``cells (rows, columns)``: NaN is nothing to show, a negative value of another ``kind``.

    ``write`` words a value.  ``label`` is what a screen reader says, ``bands`` lie on the columns.
    ``columns`` names them; without names they are numbered from 1.
    """

    label: str
    x_label: str
    row_label: str
    rows: Sequence[str]
    cells: NDArray[np.float64]
    write: Callable[[float], str]
    columns: Sequence[str] = ()
    bands: Sequence[Band] = ()
    kind: str = ""


def grid(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    """Cells of a map from rows of one length, in which None is nothing to show."""
    return np.array(rows or [[]], dtype=np.float64)


def aria(chart: HeatMap, values: NDArray[np.float64]) -> str:
    """What a screen reader says in place of the drawing; ``values`` are what is to be shown."""
    plain = values[values >= 0] if (values >= 0).any() else values
    low, high = chart.write(float(plain.min())), chart.write(float(plain.max()))
    width = chart.cells.shape[1]
    return f"{chart.label}: {len(chart.rows)} rows, {width} columns, from {low} to {high}"


def scale_of(chart: HeatMap, top: float) -> str:
    """What the shades mean."""
    swatches = "".join(f'<i class="q{i}"></i>' for i in range(1, 6))
    others = (chart.cells < 0).any()
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
    row = chart.cells[index]
    known = row[~np.isnan(row)]
    cells = [f"{len(known)} of {len(row)}"]
    if len(known):
        cells += [chart.write(float(v)) for v in (known.min(), known.mean(), known.max())]
    cells += ["–"] * (4 - len(cells))
    body = "".join(f"<td>{escape(text)}</td>" for text in cells)
    return f'<tr><th scope="row">{escape(chart.rows[index])}</th>{body}</tr>'
