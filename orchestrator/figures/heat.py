"""Heat maps: shaded cells by row and column, with a scale and the same in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from orchestrator.figures.frame import WIDTH
from orchestrator.figures.heat_words import HeatMap, aria, scale_of, table_of
from orchestrator.figures.thinning import bin_size, rows_binned

MOST_ROWS, MOST_COLUMNS = 64, 100
SHADES: Final = 20  # steps of opacity, so that cells of a shade are one path
DARKEST: Final = 0.62  # text on it stays readable
_LETTERS: Final = 24  # of a row's name
_TOP: Final = 16
_LETTER_WIDTH: Final = 6.3


def heat_map(chart: HeatMap) -> Markup:
    """The drawing, its scale, and a table of every row's lowest, mean and highest; empty if empty.

    More than ``MOST_ROWS`` rows or ``MOST_COLUMNS`` columns are drawn as means of neighbours, and a
    note says so.
    """
    values = chart.cells[~np.isnan(chart.cells)]
    if not len(values):
        return Markup("")
    grid = _Grid.of(chart)
    top = max(0.0, float(values.max())) or 1.0
    drawing = (
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {grid.height:.0f}" role="img" '
        f'aria-label="{escape(aria(chart, values))}">{grid.frame(chart)}{grid.cells(top)}'
        f"{grid.names(chart)}</svg></div>"
    )
    scale = scale_of(chart, top) + "".join(f'<p class="note">{note}</p>' for note in grid.notes())
    return Markup(drawing + scale + table_of(chart))  # noqa: S704 - every name was escaped


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Cells after thinning, ``values (rows, columns)``, and where they lie."""

    values: NDArray[np.float64]
    rows_each: int
    columns_each: int
    left: float
    cell: tuple[float, float]  # width, height

    @classmethod
    def of(cls, chart: HeatMap) -> _Grid:
        height, width = chart.cells.shape
        across, down = bin_size(width, MOST_COLUMNS), bin_size(height, MOST_ROWS)
        values = rows_binned(rows_binned(chart.cells, across).T, down).T
        longest = max(min(len(name), _LETTERS) for name in chart.rows)
        left = min(170.0, 14 + _LETTER_WIDTH * longest)
        high = 18.0 if len(values) <= 12 else 13.0 if len(values) <= 32 else 8.0
        return cls(
            values=values,
            rows_each=down,
            columns_each=across,
            left=left,
            cell=((WIDTH - 6 - left) / values.shape[1], high),
        )

    @property
    def height(self) -> float:
        return _TOP + self.cell[1] * len(self.values) + 36

    def frame(self, chart: HeatMap) -> str:
        wide, high = WIDTH - 6 - self.left, self.cell[1] * len(self.values)
        parts = [
            f'<rect class="ground" x="{self.left:.1f}" y="{_TOP}" '
            f'width="{wide:.1f}" height="{high:.1f}"/>'
        ]
        one = self.cell[0] / self.columns_each
        for band in chart.bands:
            start, end = (self.left + one * (edge + 0.5) for edge in (band.start, band.end))
            parts.append(f'<path class="grid" d="M{end:.1f} {_TOP - 3}v{high + 3:.1f}"/>')
            if end - start > 13:
                middle = (start + end) / 2
                parts.append(
                    f'<text class="mid" x="{middle:.1f}" y="{_TOP - 5}">{escape(band.label)}</text>'
                )
        return "".join(parts)

    def cells(self, top: float) -> str:
        """A path per shade, a stroke for neighbours alike in a row; a unit is a cell."""
        shades, paths = _shades(self.values, top), dict[int, list[str]]()
        begins = np.ones(shades.shape, dtype=bool)
        begins[:, 1:] = shades[:, 1:] != shades[:, :-1]
        rows, columns = np.nonzero(begins)
        lengths = np.diff(np.flatnonzero(begins), append=shades.size)
        runs = zip(
            *(each.tolist() for each in (shades[begins], rows, columns, lengths)), strict=True
        )
        for shade, row, column, length in runs:
            if shade:
                paths.setdefault(shade, []).append(f"M{column} {row}h{length}")
        wide, high = self.cell
        drawn = "".join(
            f'<path class="{"hot" if shade > 0 else "other"}" d="{"".join(runs)}" '
            f'stroke-opacity="{DARKEST * shade / SHADES if shade > 0 else 0.4:.3f}"/>'
            for shade, runs in sorted(paths.items())
        )
        place = f"translate({self.left:.1f} {_TOP + high / 2}) scale({wide:.4f} {high})"
        return f'<g transform="{place}" stroke-width="{1 - 0.6 / high:.2f}">{drawn}</g>'

    def names(self, chart: HeatMap) -> str:
        """Rows at the left, columns below, and numbers in the cells where there is room."""
        parts, (wide, high) = list[str](), self.cell
        bottom = _TOP + high * len(self.values)
        every = max(1, math.ceil(11 / high))
        for row in range(0, len(self.values), every):
            name = chart.rows[row * self.rows_each]
            y = _TOP + high * (row + 0.5) + 4
            parts.append(
                f'<text class="end small" x="{self.left - 6:.1f}" y="{y:.1f}">'
                f"{escape(_short(name))}</text>"
            )
        parts += self._columns(chart, bottom)
        parts.append(
            f'<text class="mid" x="{(self.left + WIDTH - 6) / 2:.1f}" y="{bottom + 31:.1f}">'
            f"{escape(chart.x_label)}</text>"
        )
        if wide >= 24 and high >= 13:
            parts += self._numbers(chart)
        return "".join(parts)

    def _columns(self, chart: HeatMap, bottom: float) -> list[str]:
        count, (wide, _) = self.values.shape[1], self.cell
        longest = max((len(name) for name in chart.columns), default=4)
        every = max(1, math.ceil(_LETTER_WIDTH * (longest + 1) / wide))
        names = chart.columns or [str(i + 1) for i in range(count * self.columns_each)]
        return [
            f'<text class="mid small" x="{self.left + wide * (i + 0.5):.1f}" '
            f'y="{bottom + 15:.1f}">{escape(names[i * self.columns_each])}</text>'
            for i in range(0, count, every)
        ]

    def _numbers(self, chart: HeatMap) -> list[str]:
        """Written in the cells; nothing where the longest does not fit."""
        wide, high = self.cell
        places = np.argwhere(~np.isnan(self.values)).tolist()
        texts = [chart.write(float(self.values[row, column])) for row, column in places]
        if wide < _LETTER_WIDTH * (max(map(len, texts)) + 0.5):
            return []
        return [
            f'<text class="mid small in" x="{self.left + wide * (column + 0.5):.1f}" '
            f'y="{_TOP + high * (row + 0.5) + 4:.1f}">{escape(text)}</text>'
            for (row, column), text in zip(places, texts, strict=True)
        ]

    def notes(self) -> list[str]:
        found = list[str]()
        if self.rows_each > 1:
            found.append(f"Every row is the mean of {self.rows_each} neighbours.")
        if self.columns_each > 1:
            found.append(f"Every column is the mean of {self.columns_each} neighbours.")
        return found


def _shades(values: NDArray[np.float64], top: float) -> NDArray[np.int64]:
    """0 is nothing; from 1 on, so that a measured nought is seen; −1 is the other kind."""
    known = np.nan_to_num(values)
    steps = np.maximum(1, np.rint(SHADES * np.clip(known / top, 0.0, 1.0)))
    return np.where(np.isnan(values), 0, np.where(known < 0, -1, steps)).astype(np.int64)


def _short(name: str) -> str:
    """The end of a long name, which tells it from the others."""
    return name if len(name) <= _LETTERS else f"…{name[-_LETTERS + 1 :]}"
