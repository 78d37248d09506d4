"""Stacked bars, one per step.  Their numbers belong in a table nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

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
from orchestrator.figures.thinning import MOST_BARS, bin_size, binned


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A part of every bar; ``unit`` is only for the words that appear over it."""

    name: str
    values: Sequence[float]
    unit: str = ""


def bars(stacks: Sequence[Stack], frame: Frame) -> Markup:
    """One bar per index, a part per stack; empty if everything is zero.

    Beyond ``MOST_BARS`` a bar is the mean of several neighbours, and a note says so.
    """
    count = max((len(stack.values) for stack in stacks), default=0)
    size = bin_size(count, MOST_BARS)
    drawn = [replace(s, values=[v or 0.0 for v in binned(s.values, size)]) for s in stacks]
    totals = [sum(values) for values in zip(*(s.values for s in drawn), strict=True)]
    if not any(totals):
        return Markup("")
    x = Scale(-0.5, len(totals) * size - 0.5, LEFT, WIDTH - RIGHT)
    y = Scale(0, max(totals) * 1.05, HEIGHT - BOTTOM, TOP)
    body = [axes(x, y, frame), *(_bar(drawn, i, size, (x, y)) for i in range(len(totals)))]
    note = f"Every bar is the mean of {size} steps." if size > 1 else ""
    entries = [(f"k{i % COLORS}", stack.name) for i, stack in enumerate(stacks)]
    return figure(body, frame, legend_of(entries, frame, note))


def _bar(stacks: Sequence[Stack], index: int, size: int, scales: tuple[Scale, Scale]) -> str:
    x, y = scales
    parts, base, width = list[str](), 0.0, max(0.6, (x(size) - x(0)) * 0.82)
    left = x(index * size + (size - 1) / 2) - width / 2
    for order, stack in enumerate(stacks):
        value = stack.values[index]
        height = y(base) - y(base + value)
        base += value
        if height > 0:
            parts.append(
                f'<rect x="{left:.1f}" y="{y(base):.1f}" width="{width:.1f}" '
                f'height="{height:.1f}" class="k{order % COLORS}"/>'
            )
    return f"<g><title>{_words(stacks, index, size)}</title>{''.join(parts)}</g>" if parts else ""


def _words(stacks: Sequence[Stack], index: int, size: int) -> str:
    """What appears over a bar: its step or steps, and every part that is there."""
    first, last = index * size, (index + 1) * size - 1
    steps = f"step {first}" if size == 1 else f"steps {first} to {last}"
    parts = [f"{s.name} {s.values[index]:.3g} {s.unit}".strip() for s in stacks if s.values[index]]
    return escape(f"{steps}: {', '.join(parts)}")
