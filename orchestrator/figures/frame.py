"""What surrounds a chart: scales, axes, bands of tasks, marks of replay, legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from markupsafe import Markup

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 22, 42
COLORS: Final = 8  # .k0 … .k7 of the palette
_NARROW: Final = 13  # pixels a band needs for its label


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of the x axis with a ``label`` above it."""

    start: float
    end: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What surrounds a chart.

    ``label`` is what a screen reader says.  ``x_low`` and ``y_range`` of None fit the data.
    ``marks`` are places on the x axis with a triangle below them; ``mark_name`` says of what.
    """

    label: str
    x_label: str
    y_label: str = ""
    whole_x: bool = False
    x_low: float | None = None
    y_range: tuple[float, float] | None = None
    bands: Sequence[Band] = ()
    marks: Sequence[float] = ()
    mark_name: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def axes(x: Scale, y: Scale, frame: Frame) -> str:
    """Grid, ticks, labels, bands and marks."""
    bottom, parts = HEIGHT - BOTTOM, [_bands(x, frame.bands)]
    for value in _ticks(y.low, y.high, at_most=6):
        kind = "zero" if value == 0 else "grid"
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'class="{kind}"/><text x="{LEFT - 6}" y="{y(value) + 4:.1f}" class="end">'
            f"{_tick(value)}</text>"
        )
    for value in _ticks(x.low, x.high, at_most=8, whole=frame.whole_x):
        parts.append(
            f'<text x="{x(value):.1f}" y="{bottom + 17}" class="mid">{_tick(value)}</text>'
        )
    parts.append(_marks(x, frame))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" class="mid">{escape(frame.x_label)}</text>')
    if frame.y_label:
        parts.append(f'<text x="4" y="13">{escape(frame.y_label)}</text>')
    return "".join(parts)


def figure(body: Sequence[str], frame: Frame, legend: str) -> Markup:
    """The drawing with its name, and the legend below it."""
    drawing = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(frame.label)}">'
        f"{''.join(body)}</svg>"
    )
    return Markup(drawing + legend)  # noqa: S704 - every name in it was escaped above


def legend_of(entries: Sequence[tuple[str, str]], frame: Frame, note: str = "") -> str:
    """Names by colour class where there are several, what the marks are, and a ``note``."""
    shown = list(entries) if len(entries) > 1 else []
    items = [f'<li><i class="{color}"></i>{escape(name)}</li>' for color, name in shown]
    if frame.marks:
        items.append(f'<li><i class="tri"></i>{escape(frame.mark_name)}</li>')
    listed = f'<ul class="legend">{"".join(items)}</ul>' if items else ""
    return listed + (f'<p class="note">{escape(note)}</p>' if note else "")


def _marks(x: Scale, frame: Frame) -> str:
    if not frame.marks:
        return ""
    top = HEIGHT - BOTTOM + 1
    path = "".join(f"M{x(mark):.1f} {top}l3 5h-6z" for mark in frame.marks)
    return f'<path class="mark-here" d="{path}"/>'


def _bands(x: Scale, bands: Sequence[Band]) -> str:
    parts = list[str]()
    for index, band in enumerate(bands):
        start, end = max(x(band.start), LEFT), min(x(band.end), WIDTH - RIGHT)
        parts.append(
            f'<rect x="{start:.1f}" y="{TOP - 4}" width="{max(0.0, end - start):.1f}" '
            f'height="{HEIGHT - BOTTOM - TOP + 4}" class="band{index % 2}"/>'
        )
        if end - start >= _NARROW or len(bands) == 1:
            parts.append(
                f'<text x="{(start + end) / 2:.1f}" y="{TOP - 9}" class="mid">'
                f"{escape(band.label)}</text>"
            )
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


def _ticks(low: float, high: float, *, at_most: int, whole: bool = False) -> list[float]:
    """Round numbers in the range, a handful of them."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / at_most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= at_most)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]
