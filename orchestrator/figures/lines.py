"""Line charts.  Their numbers belong in a table nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from markupsafe import Markup

from orchestrator.figures.frame import (
    BOTTOM,
    COLORS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    Scale,
    axes,
    figure,
    legend_of,
)
from orchestrator.figures.thinning import Point, thinned

_INSET: Final = 12  # keeps the first mark of a line clear of the axis
_DASHES: Final = ("", "7 4", "2 3", "10 3 2 3")  # tell lines apart once the colors are used up
_MOST_DOTS: Final = 60  # of a line, beyond which it is drawn without


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series of ``points``; ``mark`` is written at the first; a ``bold`` one is drawn in ink."""

    name: str
    points: Sequence[Point]
    mark: str = ""
    bold: bool = False


def lines(series: Sequence[Line], frame: Frame) -> Markup:
    """A line per series, a dot at every point of short ones, a legend; empty without a point."""
    points = [point for line in series for point in line.points]
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = frame.y_range or (min(0.0, *ys, 0.0), max(0.0, *ys, 0.0) * 1.08)
    left = min(xs) if frame.x_low is None else frame.x_low
    x = Scale(left, max(xs) if max(xs) > left else left + 1, LEFT + _INSET, WIDTH - RIGHT)
    y = Scale(low, high if high > low else low + 1, HEIGHT - BOTTOM, TOP)
    body = [axes(x, y, frame), *(_line(line, i, x, y) for i, line in enumerate(series))]
    entries = [(_color(i, line), line.name) for i, line in enumerate(series)]
    return figure(body, frame, legend_of(entries, frame, _note(series)))


def _note(series: Sequence[Line]) -> str:
    longest = max(len(line.points) for line in series)
    kept = max(len(thinned(line.points)) for line in series)
    if kept == longest:
        return ""
    return f"Drawn through the lowest and highest of every stretch: {kept} of {longest} points."


def _line(line: Line, index: int, x: Scale, y: Scale) -> str:
    color, points = _color(index, line), thinned(line.points)
    dash = "" if line.bold else _DASHES[index // COLORS % len(_DASHES)]
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    weight = 3 if line.bold else 1.75
    dots = _dots(line, x, y) if len(line.points) <= _MOST_DOTS else ""
    text = ""
    if line.mark and line.points:
        a, b = line.points[0]
        above = max(y(b) - 7, TOP - 2)
        text = f'<text x="{x(a):.1f}" y="{above:.1f}" class="mark">{escape(line.mark)}</text>'
    return (
        f'<g class="{color}"><polyline points="{path}" stroke-width="{weight}" '
        f'stroke-dasharray="{dash}"/>{dots}</g>{text}'
    )


def _dots(line: Line, x: Scale, y: Scale) -> str:
    radius = 3.0 if len(line.points) <= _MOST_DOTS // 2 else 1.8
    return "".join(
        f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="{radius}">'
        f"<title>{escape(line.name)}: {b:.3g} at {a:.4g}</title></circle>"
        for a, b in line.points
    )


def _color(index: int, line: Line) -> str:
    return "ink" if line.bold else f"k{index % COLORS}"
