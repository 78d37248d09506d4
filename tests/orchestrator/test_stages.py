"""Streams in which clients are at different tasks: plans, what counts as learnt, what is shown."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from datetime import UTC, datetime

import numpy as np
import pytest

from orchestrator.cli.live import _where
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.metrics import METRICS, AccuracyMatrix, by_client
from orchestrator.planner import plan_step
from orchestrator.report import RepliesSeen, render_report
from orchestrator.rounds import close_step
from orchestrator.schedule import schedule
from orchestrator.store.base import ScoreRecord
from orchestrator.summary import row_names, show
from strategies.arrival import Arrivals
from strategies.cost import CostModel
from strategies.errors import ConfigError
from strategies.types import ClientId, Reply
from tests.conftest import REPOSITORY
from tests.orchestrator.builders import a_config, a_federation, an_update
from tests.orchestrator.recorded_run import CLIENTS, TASKS, recorded_run

STAGGERED = {"stream__arrival": "staggered", "stream__lag": 2}


def plan_at(step_index: int, config, federation=None):
    federation = federation or a_federation()
    state = dataclasses.replace(initial_state(config, federation), step_index=step_index)
    return plan_step("run", config, federation, state, Fleet())


def test_a_staggered_schedule_has_a_stage_per_task_and_lag():
    steps = schedule(a_config(**STAGGERED), 2)
    rows = [step for step in steps if step.kind == "evaluate"]
    assert [step.task_index for step in rows] == [-1, 0, 1, 2]
    assert [step.seen for step in rows] == [(), (0,), (0, 1), (0, 1)]
    assert [step.tasks for step in steps if step.kind == "train" and not step.round_index] == [
        (0,),
        (0, 1),
        (1,),
    ]


def test_every_client_is_sent_its_own_task_and_what_it_met_before():
    config = a_config(**STAGGERED)
    found = [
        {
            o.assignment.client_id: (o.assignment.work.tasks, o.assignment.met)
            for o in plan_at(step, config).orders
        }
        for step in (1, 4, 7)
    ]
    even, odd = ("client-0", "client-2"), "client-1"
    assert found[0] == dict.fromkeys(even, ((0,), ()))
    assert found[1] == dict.fromkeys(even, ((1,), (0,))) | {odd: ((0,), ())}
    assert found[2] == {odd: ((1,), (0,))}
    assert {o.assignment.task_index for o in plan_at(4, config).orders} == {1}  # the stage


def test_probes_look_at_the_clients_own_task():
    config = a_config(**STAGGERED, strategy__layer_selection={"name": "rgn"})
    steps = schedule(config, 2)
    at = next(i for i, s in enumerate(steps) if s.kind == "probe" and s.task_index == 1)
    assert [o.assignment.probe.tasks for o in plan_at(at, config).orders] == [(1,), (0,), (1,)]


def test_a_cohort_holds_examples_of_its_own_tasks():
    federation = a_federation(((4, 0), (0, 4), (4, 4)))
    plan = plan_at(4, a_config(**STAGGERED), federation)  # tasks 1, 0 and 1
    assert [o.assignment.client_id for o in plan.orders] == ["client-2"]
    assert any("client-0, client-1" in note for note in plan.notes)


def test_costs_are_of_the_clients_own_task():
    federation = a_federation(((9, 2), (3, 9), (9, 5)))
    view = plan_at(4, a_config(**STAGGERED), federation).view
    sizes = [CostModel.of(view.groups, view.budget, c).budget.batch_size for c in view.clients]
    assert sizes == [2, 3, 5]


def test_what_nobody_with_examples_has_met_is_no_answer():
    federation = a_federation(((4, 0), (4, 4), (4, 0)))  # client-1 alone holds task 1
    config = a_config(**STAGGERED)
    seen = [plan_at(step, config, federation).orders[0].assignment.evaluation.seen_tasks
            for step in (0, 3, 6, 9)]  # fmt: skip
    assert seen == [(0, 1), (0,), (0,), (0, 1)]


@pytest.mark.parametrize("selector", ["all", "fisher"])
@pytest.mark.parametrize("allocator", ["fixed", "adalora", "airllm", "eva", "hetlora"])
def test_a_stage_in_which_nobody_has_examples_passes_idly(selector, allocator):
    quick = {"pretrain_episodes": 1} if allocator == "airllm" else {}
    federation, config = (
        a_federation(((0, 4), (4, 4), (0, 4))),
        a_config(
            **STAGGERED,
            strategy__layer_selection={"name": selector},
            strategy__rank={"name": allocator, **quick},
        ),
    )
    state = dataclasses.replace(initial_state(config, federation), step_index=1)
    while schedule(config, 2)[state.step_index].kind != "evaluate":
        plan = plan_step("run", config, federation, state, Fleet())
        assert plan.idle
        assert plan.orders == ()
        after = close_step(state, plan, (), config=config, federation=federation).state
        assert after == dataclasses.replace(state, step_index=state.step_index + 1)
        state = after
    assert state.step_index > 2


def test_a_stage_with_some_clients_closes_like_any_other():
    federation, config = a_federation(), a_config(**STAGGERED)
    plan = plan_at(7, config, federation)
    replies = [
        Reply(result=an_update(o, federation), bytes_down=1, bytes_up=1, seconds=1.0)
        for o in plan.orders
    ]
    state = dataclasses.replace(initial_state(config, federation), step_index=7)
    outcome = close_step(state, plan, replies, config=config, federation=federation)
    assert [reply.client_id for reply in outcome.replies] == ["client-1"]


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        (
            {"stream__arrival": "shuffled", "learning__mode": "joint"},
            "stream.arrival",
            "joint training gives all tasks to all clients at once",
        ),
        (
            {"stream__arrival": "staggered", "stream__lag": 4},
            "stream.lag",
            "at most federation.clients = 3",
        ),
        ({"stream__arrival": "staggered"}, "stream", "lag goes with arrival"),
        ({"stream__arrival": "staggered", "stream__lag": 1}, "stream.lag", "greater than or equal"),
    ],
)
def test_what_does_not_go_together_is_a_fault(changes, key, expected):
    with pytest.raises(ConfigError) as caught:
        a_config(**changes)
    (fault,) = caught.value.faults
    assert fault.key == key
    assert expected in f"{fault.expected} {fault.hint}"


def a_timetable(*rows) -> Arrivals:
    tasks = {ClientId(f"c{index}"): row for index, row in enumerate(rows)}
    return Arrivals(num_stages=len(rows[0]), tasks=tasks)


def scores_of(when: Arrivals, cells) -> list[ScoreRecord]:
    """``cells[row][task]`` correct answers of ten, the same for every client."""
    return [
        ScoreRecord(client_id=client, after_task=row - 1, task_index=task, num_examples=10,
                    num_correct=correct, loss_sum=0.0)
        for client in when.tasks
        for row, values in enumerate(cells)
        for task, correct in enumerate(values)
    ]  # fmt: skip


def test_a_task_is_learnt_once_half_of_its_clients_have_met_it():
    """Three clients at 0 1 –, 0 1 –, – 0 1: task 0 by row 1, task 1 by row 2, three rows."""
    when = a_timetable((0, 1, None), (0, 1, None), (None, 0, 1))
    cells = [(1, 1), (8, 2), (6, 7), (5, 9)]
    matrix = AccuracyMatrix.of(scores_of(when, cells), 2, when=when)
    assert matrix.learnt_at == (1, 2)
    assert (matrix.last_row, matrix.num_learnt) == (3, 2)
    found = {name: metric(matrix) for name, metric in METRICS.items()}
    expected = {
        "acc": (0.5 + 0.9) / 2,
        "aia": (0.8 + (0.6 + 0.7) / 2 + (0.5 + 0.9) / 2) / 3,
        "bwt": ((0.5 - 0.8) + (0.9 - 0.7)) / 2,
        "fwt": 0.2 - 0.1,
        "forgetting": ((0.8 - 0.5) + (0.7 - 0.9)) / 2,
        "learning_accuracy": (0.8 + 0.7) / 2,
    }
    assert found == pytest.approx(expected)
    own = by_client(scores_of(when, cells), 2, when)
    assert [matrix.learnt_at for matrix in own.values()] == [(1, 2), (1, 2), (2, 3)]
    assert own["c2"].bwt() == pytest.approx(0.5 - 0.6)
    assert own["c2"].learning_accuracy() == pytest.approx((0.6 + 0.9) / 2)


def test_half_is_of_those_who_are_scored_on_the_task():
    when = a_timetable((1, 0), (1, 0), (0, 1))
    scores = [s for s in scores_of(when, [(1, 1), (2, 3), (4, 5)])
              if (s.client_id, s.task_index) not in {("c0", 0), ("c1", 0)}]  # fmt: skip
    assert AccuracyMatrix.of(scores, 2, when=when).learnt_at == (1, 1)
    everybody = scores_of(when, [(1, 1), (2, 3), (4, 5)])
    assert AccuracyMatrix.of(everybody, 2, when=when).learnt_at == (2, 1)


def test_tasks_that_come_out_of_order_and_a_run_under_way():
    when = a_timetable((1, 0), (1, 0))
    matrix = AccuracyMatrix.of(scores_of(when, [(1, 1), (0, 8)]), 2, when=when)
    assert matrix.learnt_at == (2, 1)
    assert matrix.scored.tolist() == [1]
    assert matrix.acc() == pytest.approx(0.8)
    assert np.isnan(matrix.forgetting())
    whole = AccuracyMatrix.of(scores_of(when, [(1, 1), (0, 8), (7, 5)]), 2, when=when)
    np.testing.assert_allclose(whole.forgetting_per_task(), [np.nan, 0.3])
    assert whole.forgetting() == pytest.approx(0.3)


def test_a_timetable_of_tasks_together_changes_no_bit():
    scores = [s for r in recorded_run()[1] for s in r.scores]
    together = Arrivals(
        num_stages=len(TASKS), tasks=dict.fromkeys(CLIENTS, tuple(range(len(TASKS))))
    )
    plain = AccuracyMatrix.of(scores, len(TASKS))
    timed = AccuracyMatrix.of(scores, len(TASKS), when=together)
    np.testing.assert_array_equal(plain.values, timed.values)
    for metric in METRICS.values():
        assert metric(plain) == metric(timed)
    np.testing.assert_array_equal(plain.forgetting_per_task(), timed.forgetting_per_task())


def test_rows_are_shown_as_stages():
    run, rounds, events = recorded_run()
    stream = {"kind": "class-incremental", "classes_per_task": 2, "arrival": "shuffled"}
    apart = dataclasses.replace(run, config={**run.config, "stream": stream})
    plain, shown = show(run, rounds, events), show(apart, rounds, events)
    assert row_names(plain)[0] == "1 banking"
    assert row_names(shown) == [f"stage {i}" for i in range(1, 6)]
    assert plain["learnt_at"] == [1, 2, 3, 4, 5]
    assert shown["learnt_at"] != plain["learnt_at"]
    now, seen = datetime.now(UTC), RepliesSeen.of(rounds)
    page = render_report(shown, seen, generated_at=now)
    assert '<th scope="row">stage 3</th>' in page
    assert "Rows are stages" in page
    assert "Rows are stages" not in render_report(plain, seen, generated_at=now)
    live = {"task": 5, "phase": "training", "stages": 6, "round": 0, "rounds_in_task": 2}
    assert str(_where(live, ("a", "b"))).startswith("stage 6 of 6, round 1 of 2")


def test_the_stream_in_the_docs_is_valid():
    page = (REPOSITORY / "docs" / "strategies.md").read_text()
    section = page.partition("## Streams")[2].partition("\n## ")[0]
    (text,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    stream = tomllib.loads(text)["stream"]
    config = a_config(stream=stream)
    assert config.arrivals(5).num_stages == 7
    assert config.stream.boundaries == "detected"
