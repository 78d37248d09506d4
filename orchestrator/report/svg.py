"""Small inline SVG: line charts and stacked bars.  Their numbers belong in a table nearby."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from markupsafe import Markup

WIDTH, HEIGHT = 480, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 22, 42
_INSET: Final = 12  # keeps the first mark of a line clear of the axis
_COLORS: Final = 8  # --c0 … --c7 of the style sheet
_DASHES: Final = ("", "7 4", "2 3", "10 3 2 3")  # tell lines apart once the colors are used up
Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series of ``points``; ``mark`` is written at the first; a ``bold`` one is drawn in ink."""

    name: str
    points: Sequence[Point]
    mark: str = ""
    bold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A part of every bar; ``unit`` is only for the words that appear over it."""

    name: str
    values: Sequence[float]
    unit: str = ""


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
    """

    label: str
    x_label: str
    y_label: str = ""
    whole_x: bool = False
    x_low: float | None = None
    y_range: tuple[float, float] | None = None
    bands: Sequence[Band] = ()


@dataclass(frozen=True, slots=True)
class _Scale:
    """Data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def lines(series: Sequence[Line], frame: Frame) -> Markup:
    """A line per series, with a mark at every point and a legend; empty if there is no point."""
    points = [point for line in series for point in line.points]
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = frame.y_range or (min(0.0, *ys, 0.0), max(0.0, *ys, 0.0) * 1.08)
    left = min(xs) if frame.x_low is None else frame.x_low
    x = _Scale(left, max(xs) if max(xs) > left else left + 1, _LEFT + _INSET, WIDTH - _RIGHT)
    y = _Scale(low, high if high > low else low + 1, HEIGHT - _BOTTOM, _TOP)
    body = [_axes(x, y, frame)]
    for index, line in enumerate(series):
        body.append(_line(line, index, x, y))
    legend = _legend([(line.name, _color(i, line)) for i, line in enumerate(series)])
    return _figure(body, frame, legend)


def bars(stacks: Sequence[Stack], frame: Frame) -> Markup:
    """One bar per index, a part per stack; empty if everything is zero."""
    count = max((len(stack.values) for stack in stacks), default=0)
    totals = [sum(stack.values[i] for stack in stacks) for i in range(count)]
    if not any(totals):
        return Markup("")
    x = _Scale(-0.5, count - 0.5, _LEFT, WIDTH - _RIGHT)
    y = _Scale(0, max(totals) * 1.05, HEIGHT - _BOTTOM, _TOP)
    body = [_axes(x, y, frame)]
    for index in range(count):
        body.append(_bar(stacks, index, x, y))
    legend = _legend([(stack.name, f"var(--c{i % _COLORS})") for i, stack in enumerate(stacks)])
    return _figure(body, frame, legend)


def _line(line: Line, index: int, x: _Scale, y: _Scale) -> str:
    color = _color(index, line)
    dash = "" if line.bold else _DASHES[index // _COLORS % len(_DASHES)]
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
    weight = 3 if line.bold else 1.75
    radius = 3.0 if len(line.points) <= 40 else 1.5
    marks = "".join(
        f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="{radius}" style="fill:{color}">'
        f"<title>{escape(line.name)}: {b:.3g} at {a:.4g}</title></circle>"
        for a, b in line.points
    )
    text = ""
    if line.mark and line.points:
        a, b = line.points[0]
        above = max(y(b) - 7, _TOP - 2)
        text = f'<text x="{x(a):.1f}" y="{above:.1f}" class="mark">{escape(line.mark)}</text>'
    return (
        f'<polyline points="{path}" fill="none" style="stroke:{color}" stroke-width="{weight}" '
        f'stroke-dasharray="{dash}"/>{marks}{text}'
    )


def _color(index: int, line: Line) -> str:
    return "var(--fg)" if line.bold else f"var(--c{index % _COLORS})"


def _bar(stacks: Sequence[Stack], index: int, x: _Scale, y: _Scale) -> str:
    parts, base, width = list[str](), 0.0, max(0.6, (x(1) - x(0)) * 0.82)
    for order, stack in enumerate(stacks):
        value = stack.values[index]
        height = y(base) - y(base + value)
        base += value
        if height > 0:
            parts.append(
                f'<rect x="{x(index) - width / 2:.1f}" y="{y(base):.1f}" width="{width:.1f}" '
                f'height="{height:.1f}" style="fill:var(--c{order % _COLORS})">'
                f"<title>step {index}, {escape(stack.name)}: {value:.3g} {escape(stack.unit)}"
                "</title></rect>"
            )
    return "".join(parts)


def _axes(x: _Scale, y: _Scale, frame: Frame) -> str:
    bottom, parts = HEIGHT - _BOTTOM, [_bands(x, frame.bands)]
    for value in _ticks(y.low, y.high, at_most=6):
        kind = "zero" if value == 0 else "grid"
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'class="{kind}"/><text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" class="end">'
            f"{_tick(value)}</text>"
        )
    for value in _ticks(x.low, x.high, at_most=8, whole=frame.whole_x):
        parts.append(
            f'<text x="{x(value):.1f}" y="{bottom + 17}" class="mid">{_tick(value)}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" class="mid">{escape(frame.x_label)}</text>')
    if frame.y_label:
        parts.append(f'<text x="4" y="13">{escape(frame.y_label)}</text>')
    return "".join(parts)


def _bands(x: _Scale, bands: Sequence[Band]) -> str:
    parts = list[str]()
    for index, band in enumerate(bands):
        start, end = max(x(band.start), _LEFT), min(x(band.end), WIDTH - _RIGHT)
        parts.append(
            f'<rect x="{start:.1f}" y="{_TOP - 4}" width="{max(0.0, end - start):.1f}" '
            f'height="{HEIGHT - _BOTTOM - _TOP + 4}" class="band{index % 2}"/>'
            f'<text x="{(start + end) / 2:.1f}" y="{_TOP - 9}" class="mid">'
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


def _figure(body: Sequence[str], frame: Frame, legend: str) -> Markup:
    drawing = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(frame.label)}">'
        f"{''.join(body)}</svg>"
    )
    return Markup(drawing + legend)  # noqa: S704 - every name in it was escaped above


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    if len(entries) < 2:
        return ""
    items = "".join(
        f'<li><i style="background:{color}"></i>{escape(name)}</li>' for name, color in entries
    )
    return f'<ul class="legend">{items}</ul>'
