"""The pages: whole, self-contained, safe, and saying what the numbers say."""

from __future__ import annotations

import copy
import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from rich.console import Console

from orchestrator.cli.output import print_outcome, print_run
from orchestrator.figures.bars import Stack, bars
from orchestrator.figures.frame import Frame
from orchestrator.figures.lines import Line, lines
from orchestrator.figures.scores import accuracy_curves
from orchestrator.report import RepliesSeen, render_comparison, render_report
from orchestrator.report.forgetting import explain
from orchestrator.report.reading import in_words
from orchestrator.report.tables import MOST_COLUMNS, rank_map
from orchestrator.report.writing import duration, number, setting, size
from orchestrator.summary import show
from tests.orchestrator.recorded_run import TASKS, recorded_run

NOW = datetime(2026, 3, 4, 6, 0, tzinfo=UTC)
RECORDED = recorded_run(name="forgetful", kept=0.6)
SHOWN, SEEN = show(*RECORDED), RepliesSeen.of(RECORDED[1])
PAGE = render_report(SHOWN, SEEN, generated_at=NOW)
COMPARISON = render_comparison([SHOWN, show(*recorded_run())])
VOID = {"meta", "br", "wbr"}


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def text_of(page: str) -> str:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return " ".join(" ".join(parser.text).split())


def drawings(page: str) -> list[ElementTree.Element]:
    found = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    return [ElementTree.fromstring(each) for each in found]  # noqa: S314 - our own text


@pytest.mark.parametrize("page", [PAGE, COMPARISON], ids=["run", "comparison"])
def test_a_page_is_well_formed_and_asks_for_nothing(page):
    text_of(page)
    assert not re.search(r"(src|href)\s*=|@import|url\(|<script", page)


@pytest.mark.parametrize("page", [PAGE, COMPARISON], ids=["run", "comparison"])
def test_every_chart_has_a_name_and_stays_within_its_frame(page):
    charts = drawings(page)
    assert len(charts) >= 4
    for chart in charts:
        assert chart.attrib["aria-label"]
        _, _, width, height = map(float, chart.attrib["viewBox"].split())
        for mark in chart.iter("circle"):
            assert 0 <= float(mark.attrib["cx"]) <= width
            assert 0 <= float(mark.attrib["cy"]) <= height


def test_what_charts_show_stands_in_tables_too():
    words = text_of(PAGE)
    cells = [v for row in SHOWN["accuracy_matrix"] for v in row]
    assert all(number(value) in words for value in [*cells, *SHOWN["forgetting_per_task"]])
    for record in SHOWN["rounds"]:
        assert size(record["bytes_up"]) in words
        assert number(record["loss"]) in words


def test_the_paragraph_names_the_task_that_lost_most():
    lost = SHOWN["forgetting_per_task"]
    worst = TASKS[lost.index(max(lost))]
    (sentence,) = [s for s in in_words(SHOWN) if "has lost most" in s]
    assert f"“{worst}” has lost most, {max(lost):.1%}" in sentence
    assert f"{SHOWN['acc']:.1%}" in in_words(SHOWN)[0]
    assert "3 answers did not count (deadline, not-finite), from client-2, client-7." in in_words(
        SHOWN
    )


def test_a_run_that_kept_everything_says_so():
    shown = copy.deepcopy(SHOWN)
    shown["forgetting_per_task"], shown["forgetting"] = [-0.1, 0.0, 0.001, 0.0], -0.02
    assert "Nothing learnt before was lost." in in_words(shown)


def test_curves_of_good_accuracies_are_drawn_large():
    def y_ticks(kept: float) -> set[str | None]:
        shown = show(*recorded_run(kept=kept))
        chart = drawings(accuracy_curves(shown))[0]
        return {t.text for t in chart.iter("text") if t.attrib.get("class") == "end"}

    assert "0" not in y_ticks(1.0)
    assert {"0", "1"} <= y_ticks(0.6)


def test_joint_training_is_not_said_to_have_forgotten():
    run, rounds, events = recorded_run()
    rounds = [r for r in rounds if r.kind == "train" or r.task_index in (-1, 4)]
    joint = show(run, rounds, events)
    page = text_of(render_report(joint, RepliesSeen.of(rounds), generated_at=NOW))
    assert "scored only at the end" in page
    assert "has lost most" not in page
    assert "all tasks at once" in page
    assert "Accuracy by task" not in page


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_a_run_under_way_has_a_page_at_every_point(count):
    run, rounds, events = recorded_run()
    some = rounds[:count]
    shown = show(run, some, events)
    text_of(render_report(shown, RepliesSeen.of(some), generated_at=NOW))


def test_what_people_wrote_is_text():
    hostile = '"><img onerror=alert(1)>{{ 7 * 7 }}'
    shown = copy.deepcopy(SHOWN)
    shown["name"] = shown["tasks"][1] = shown["run_id"] = shown["code_version"] = hostile
    shown["config"] = {hostile: hostile}
    shown["environment"] = {hostile: hostile}
    shown["events"][0]["message"] = shown["reason"] = hostile
    for client in shown["clients"]:
        client["client_id"] = hostile
        client["ranks"] = {hostile: 2}
    seen = RepliesSeen.of(
        replace(
            record,
            replies=tuple(
                replace(reply, client_id=hostile, failure_detail=hostile)
                for reply in record.replies
            ),
        )
        for record in RECORDED[1]
    )
    shown["status"] = "failed"
    for page in (render_report(shown, seen, generated_at=NOW), render_comparison([shown, SHOWN])):
        assert "<img" not in page
        assert "{{ 7 * 7 }}" in text_of(page)


def test_ranks_are_grouped_by_block_in_the_model_s_order():
    found = rank_map(SHOWN)
    assert [block["name"] for block in found["blocks"]] == [
        "encoder.layer.0",
        "encoder.layer.1",
        "encoder.layer.2",
        "outside the blocks",
    ]
    first, head = found["blocks"][0]["rows"][0], found["blocks"][-1]["rows"][0]
    assert first["name"] == "attention.key"
    assert [c["text"] for c in first["cells"]] == ["", "", "8", "", "", "8", "", "", "8", ""]
    assert {c["text"] for c in head["cells"]} == {"dense"}


def test_block_10_follows_block_9_and_many_alike_clients_share_a_column():
    shown = copy.deepcopy(SHOWN)
    template = shown["clients"][0]
    ranks = ({"layers.10.k": 2, "layers.9.k": 2}, {"layers.9.k": 4})
    shown["clients"] = [
        template | {"client_id": f"c{i:03d}", "ranks": ranks[i % 2]}
        for i in range(MOST_COLUMNS + 2)
    ]
    found = rank_map(shown)
    assert [block["name"] for block in found["blocks"]] == ["layers.9", "layers.10"]
    assert found["columns"] == ["c000 and 24 more", "c001 and 24 more"]
    assert found["hidden"] == 0


def test_columns_that_do_not_fit_are_counted():
    shown = copy.deepcopy(SHOWN)
    template = shown["clients"][0]
    shown["clients"] = [template | {"client_id": f"c{i}", "ranks": {"k": i + 1}} for i in range(60)]
    assert rank_map(shown)["hidden"] == 60 - MOST_COLUMNS
    assert f"{60 - MOST_COLUMNS} more columns" in render_report(shown, SEEN, generated_at=NOW)


def test_failures_are_gathered_by_client_and_reason():
    assert [(f["client_id"], f["reason"], f["count"], f["steps"]) for f in SEEN.failures()] == [
        ("client-2", "deadline", 2, "3, 4"),
        ("client-7", "not-finite", 1, "10"),
    ]


def test_a_line_of_one_point_at_zero_can_be_drawn():
    (chart,) = drawings(lines([Line(name="a", points=[(0.0, 0.0)])], Frame(label="l", x_label="x")))
    assert len(list(chart.iter("circle"))) == 1
    assert lines([], Frame(label="l", x_label="x")) == ""
    assert bars([Stack(name="a", values=[0.0])], Frame(label="l", x_label="x")) == ""


def test_bars_are_as_high_as_their_values():
    stacks = [Stack(name="a", values=[1.0, 2.0]), Stack(name="b", values=[3.0, 0.0])]
    (chart,) = drawings(bars(stacks, Frame(label="l", x_label="x")))
    one, three, two = (float(r.attrib["height"]) for r in chart.iter("rect"))
    assert three == pytest.approx(3 * one, rel=0.02)
    assert two == pytest.approx(2 * one, rel=0.02)


def test_parts_of_a_bar_stand_on_one_another():
    stacks = [
        Stack(name=name, values=[value]) for name, value in (("a", 1.0), ("b", 3.0), ("c", 2.0))
    ]
    (chart,) = drawings(bars(stacks, Frame(label="l", x_label="x")))
    parts = [(float(r.attrib["y"]), float(r.attrib["height"])) for r in chart.iter("rect")]
    assert len(parts) == 3
    for (below, _), (top, height) in pairwise(parts):
        assert top + height == pytest.approx(below, abs=0.2)


def test_negative_values_stay_on_the_chart_and_ticks_are_round():
    series = [Line(name="a", points=[(1.0, -0.2), (2.0, 0.5)])]
    (chart,) = drawings(lines(series, Frame(label="l", x_label="x", whole_x=True)))
    written = [t.text for t in chart.iter("text")]
    assert {"1", "2", "0", "−0.2"} <= set(written)
    assert "1.5" not in written


def test_the_best_value_of_a_row_is_marked_in_its_own_direction():
    rows = re.findall(r"<tr><th scope=\"row\">(ACC|forgetting)[^<]*</th>(.*?)</tr>", COMPARISON)
    marked = {
        name: [('class="best"' in c) for c in cells.split("</td>")[:2]] for name, cells in rows
    }
    assert marked == {"ACC": [False, True], "forgetting": [False, True]}


def test_numbers_are_written_for_people():
    assert [number(v) for v in (None, -0.25, -0.0)] == ["–", "−0.250", "0.000"]
    assert [size(v) for v in (None, 999, 1500, 2.5e9)] == ["–", "999 B", "1.5 kB", "2.50 GB"]
    assert [duration(v) for v in (3.21, 59.96, 93.4, 7325)] == [
        "3.2 s",
        "1 min 00 s",
        "1 min 33 s",
        "2 h 02 min",
    ]
    assert [setting(v) for v in (None, True, "a", [1])] == ["–", "true", "a", "[1]"]


def test_the_page_and_the_command_line_tell_where_it_was_forgotten():
    page, console = text_of(PAGE), Console(width=200, record=True, file=io.StringIO())
    print_run(console, SHOWN)
    printed = " ".join(console.export_text().split())
    for sentence in explain(SHOWN):
        assert sentence in page
        assert sentence in printed
    for shown in SHOWN["clients"]:
        assert f"{shown['client_id']} {shown['kind']} {shown['num_examples']} " in printed
    (reason, *_) = SHOWN["releases"][-1]["reasons"]
    assert reason in page
    assert reason in printed
    assert "“work”, “small_talk” were not published; the adapter is still the one after" in page


def test_the_last_words_of_a_run_say_what_was_withheld(capsys, tmp_path):
    print_outcome(SHOWN, log_path=tmp_path / "run.log")
    printed = " ".join(capsys.readouterr().out.split())
    assert "withheld after task 4 small_talk" in printed
    assert all(reason in printed for reason in SHOWN["releases"][-1]["reasons"])
    assert "no state met" not in printed
    print_outcome(SHOWN | {"adapter_path": None}, log_path=tmp_path / "run.log")
    assert "no state met publish.require" in capsys.readouterr().out
