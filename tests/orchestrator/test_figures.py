"""Figures: safe under a strict policy, small whatever the run's length, true when thinned."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.figures.bars import Stack, bars
from orchestrator.figures.frame import Band, Frame
from orchestrator.figures.heat import DARKEST, heat_map
from orchestrator.figures.heat_words import HeatMap, grid
from orchestrator.figures.inputs import StepTotals
from orchestrator.figures.lines import Line, lines
from orchestrator.figures.naming import in_model_order, told_apart
from orchestrator.figures.ranks import ranks_by_client, ranks_by_round
from orchestrator.figures.steps import drift_map, server_time_bars, task_bands, traffic_bars
from orchestrator.figures.thinning import (
    MOST_BARS,
    MOST_POINTS,
    binned,
    rows_binned,
    thinned,
)
from orchestrator.store.drift import DriftTable

FRAME = Frame(label="l", x_label="x")
GROUPS = [f"encoder.layer.{i}.{m}" for i in range(12) for m in ("query", "key", "value", "dense")]


def steps(count: int) -> list[StepTotals]:
    """Rounds of a long run, every tenth on memories, every fiftieth a scoring."""
    return [
        StepTotals(
            step=i,
            kind="evaluate" if i % 50 == 0 else "replay" if i % 10 == 0 else "train",
            task=i // 50,
            loss=1 / (1 + i % 50),
            seconds={"exchange": 2.0, "aggregate": 0.5, "checkpoint": 0.1},
            client_seconds={"train": 20.0, "load": 1.0, "compute": 21.0},
            bytes_up=1_000_000,
            bytes_down=2_000_000,
            truncation_max=None,
        )
        for i in range(count)
    ]


def drawing(markup: str) -> ElementTree.Element:
    found = re.search(r"<svg.*?</svg>", markup, flags=re.DOTALL)
    assert found
    return ElementTree.fromstring(found.group())  # noqa: S314 - our own text


@st.composite
def series(draw: st.DrawFn) -> list[tuple[float, float]]:
    ys = draw(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=1000))
    return [(float(i), y) for i, y in enumerate(ys)]


@given(series())
def test_thinning_keeps_ends_and_extremes_in_order(points):
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 2
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {min(y for _, y in points), max(y for _, y in points)} <= {y for _, y in kept}
    assert sorted(kept) == list(kept)
    assert set(kept) <= set(points)


@given(st.lists(st.none() | st.floats(0, 10), min_size=1, max_size=300), st.integers(1, 40))
def test_bins_are_means_of_what_is_known(values, size):
    found, of_rows = binned(values, size), rows_binned(grid([values, values]), size)
    assert len(found) == -(-len(values) // size)
    for place, value in enumerate(found):
        known = [v for v in values[place * size : (place + 1) * size] if v is not None]
        assert value == (pytest.approx(sum(known) / len(known)) if known else None)
        assert of_rows[:, place] == pytest.approx(
            [math.nan if value is None else value] * 2, nan_ok=True
        )


def test_a_thinned_figure_says_so_and_a_short_one_says_nothing():
    many = [(float(i), float(i % 3)) for i in range(1000)]
    assert "of 1000 points" in lines([Line(name="a", points=many)], FRAME)
    assert "note" not in lines([Line(name="a", points=many[:100])], FRAME)
    long = bars([Stack(name="a", values=[1.0] * 500)], FRAME)
    assert "mean of 7 steps" in long
    assert len(list(drawing(long).iter("rect"))) <= MOST_BARS
    assert "note" not in bars([Stack(name="a", values=[1.0] * 40)], FRAME)


def test_the_figures_of_a_long_and_wide_run_stay_small_and_without_styles():
    run = steps(500)
    ranks = {f"client-{i}": dict.fromkeys(GROUPS[: 8 + i % 40], 2 ** (i % 4)) for i in range(100)}
    counts = [{2: 50 + i % 9, 4: 20, 8: i % 30 + 1} for i in range(500)]
    drawn = {
        "bytes": traffic_bars(run),
        "seconds": server_time_bars(run),
        "drift": drift_map(
            DriftTable.of((i // 50, dict.fromkeys(GROUPS, 1e-4 * (1 + i % 7))) for i in range(500))
        ),
        "ranks": ranks_by_client(ranks),
        "rounds": ranks_by_round(counts, [i // 50 for i in range(500)]),
    }
    for name, markup in drawn.items():
        assert len(markup) < 90_000, (name, len(markup))
        assert "style" not in markup, name
        assert drawing(markup).attrib["aria-label"], name


def test_every_replay_round_has_a_mark_and_a_word_for_it():
    found = traffic_bars(steps(50))
    (marks,) = (p for p in drawing(found).iter("path") if p.attrib["class"] == "mark-here")
    assert marks.attrib["d"].count("M") == 4
    assert "replay round" in found
    assert "replay round" not in traffic_bars(steps(10))


def test_bytes_are_stacked_by_direction_and_kind():
    found = traffic_bars(steps(20))
    names = re.findall(r"</i>(.*?)</li>", found)
    assert names[:-1] == [
        f"{way}, {kind}" for way in ("up", "down") for kind in ("training", "replay", "scoring")
    ]


def test_shades_follow_the_values_and_what_is_nothing_stays_blank():
    chart = HeatMap(
        label="l",
        x_label="x",
        row_label="r",
        rows=["a", "b"],
        cells=grid([[1.0, 2.0, None], [4.0, -1.0, None]]),
        write=str,
        kind="dense",
    )
    found = heat_map(chart)
    cells = list(drawing(found).iter("path"))
    opacity = {p.attrib["class"]: p.attrib["stroke-opacity"] for p in cells}
    hot = [float(p.attrib["stroke-opacity"]) for p in cells if p.attrib["class"] == "hot"]
    assert sorted(hot) == pytest.approx([DARKEST / 4, DARKEST / 2, DARKEST])
    assert "other" in opacity
    assert "dense" in found
    assert sum(p.attrib["d"].count("M") for p in cells) == 4
    assert heat_map(HeatMap(**{**_fields(chart), "cells": grid([[None], [None]])})) == ""


def _fields(chart: HeatMap) -> dict[str, object]:
    return {name: getattr(chart, name) for name in chart.__dataclass_fields__}


def test_a_heat_map_says_in_numbers_what_it_shows():
    found = ranks_by_client({"client-1": {"head": 0, "layer.0.k": 4}, "client-2": {"layer.0.k": 8}})
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', found)
    assert [(name, re.findall(r"<td>(.*?)</td>", cells)) for name, cells in rows] == [
        ("0.k", ["2 of 2", "4", "6", "8"]),
        ("head", ["1 of 2", "dense", "dense", "dense"]),
    ]


def test_names_are_text_in_heat_maps():
    assert "<img" not in ranks_by_client({"<img>": {"<img>.0.k": 2, "<img>": 0}})


def test_parts_are_in_the_model_s_order_and_keep_what_tells_them_apart():
    groups = in_model_order(["head", "vit.layer.10.k", "vit.layer.9.k", "vit.embeddings"])
    assert groups == ["vit.layer.9.k", "vit.layer.10.k", "head", "vit.embeddings"]
    assert list(told_apart(groups).values()) == ["9.k", "10.k", "head", "vit.embeddings"]


def test_bands_are_the_stretches_of_tasks():
    assert task_bands([-1, 0, 0, 1], [0, 1, 2, 3]) == [Band(0.5, 2.5, "1"), Band(2.5, 3.5, "2")]
