"""Small inline SVG: line charts and stacked bars, with their numbers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

from markupsafe import Markup

WIDTH, HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34
COLORS: Final = tuple(f"var(--c{index})" for index in range(8))
Point = tuple[float, float]


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


def lines(
    series: Mapping[str, Sequence[Point]],
    *,
    label: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """A line per series, with a mark at every point and a legend; empty if there is no point."""
    points = [point for line in series.values() for point in line]
    if not points:
        return Markup("")
    xs = [x for x, _ in points]
    low, high = y_range or (0.0, max(y for _, y in points) * 1.05)
    x = _Scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
    y = _Scale(low, high, HEIGHT - _BOTTOM, _TOP)
    body = [_axes(x, y, x_label)]
    for index, (name, line) in enumerate(series.items()):
        color = COLORS[index % len(COLORS)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        body.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        body += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{color}">'
            f"<title>{escape(name)}: {b:.3g} at {a:.4g}</title></circle>"
            for a, b in line
        ]
    return _figure(body, label) + _legend(list(series))


def bars(stacks: Mapping[str, Sequence[float]], *, label: str, x_label: str) -> Markup:
    """One bar per index, a part per name; empty if everything is zero."""
    count = max((len(values) for values in stacks.values()), default=0)
    totals = [sum(values[i] for values in stacks.values()) for i in range(count)]
    if not any(totals):
        return Markup("")
    x = _Scale(0, count, _LEFT, WIDTH - _RIGHT)
    y = _Scale(0, max(totals) * 1.05, HEIGHT - _BOTTOM, _TOP)
    body, width = [_axes(x, y, x_label)], max(1.0, (x(1) - x(0)) * 0.8)
    for index in range(count):
        base = 0.0
        for order, (name, values) in enumerate(stacks.items()):
            top = base + values[index]
            height = y(base) - y(top)
            body.append(
                f'<rect x="{x(index + 0.1):.1f}" y="{y(top):.1f}" width="{width:.1f}" '
                f'height="{height:.1f}" fill="{COLORS[order % len(COLORS)]}">'
                f"<title>{escape(name)}, step {index}: {values[index]:.4g}</title></rect>"
            )
            base = top
    return _figure(body, label) + _legend(list(stacks))


def _axes(x: _Scale, y: _Scale, x_label: str) -> str:
    parts = []
    for value in _ticks(y.low, y.high):
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'class="grid"/><text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{value:g}</text>'
        )
    for value in _ticks(x.low, x.high):
        parts.append(
            f'<text x="{x(value):.1f}" y="{HEIGHT - _BOTTOM + 16}" '
            f'text-anchor="middle">{value:g}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers in the range."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** _exponent(span)
    step = next(s for s in (step / 5, step / 2, step, step * 2) if span / s <= 8)
    first = -(-low // step)
    ticks = [round((first + i) * step, 10) for i in range(10)]
    return [tick for tick in ticks if tick <= high + span * 1e-9]


def _exponent(span: float) -> int:
    exponent = 0
    for low, high in pairwise(range(-12, 16)):
        if 10.0**low <= span < 10.0**high:
            exponent = low
    return exponent


def _figure(body: Sequence[str], label: str) -> Markup:
    text = "".join(body)
    return Markup(  # noqa: S704 - every name in it was escaped above
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{text}</svg>'
    )


def _legend(names: Sequence[str]) -> Markup:
    items = "".join(
        f'<li><i style="background:{COLORS[i % len(COLORS)]}"></i>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return Markup(f'<ul class="legend">{items}</ul>')  # noqa: S704 - escaped above
