"""Summaries are strict JSON of the documented shape; pages show them, and only them, safely."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime

import pytest

from orchestrator.report import RepliesSeen, render_comparison, render_report
from orchestrator.store.base import RunStatus
from orchestrator.summary import compare, run_listing, show
from tests.contract.test_run_store import a_reply, a_round, new_run, score_of

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def finished(home):
    """A run of two tasks with a failure and a name that wants to be code."""
    store = home.store()
    config = {"seed": 7, "learning": {"methods": [{"name": "er"}]}, "note": HOSTILE}
    run_id = new_run(store, name=HOSTILE, config=config).run_id
    store.transition(run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="go")
    store.describe(run_id, task_names=["first", HOSTILE])
    cells = [(-1, [(0, 1), (1, 1)]), (0, [(0, 9), (1, 2)]), (1, [(0, 6), (1, 8)])]
    for step, (after, row) in enumerate(cells):
        scores = tuple(score_of("c0", after, task, correct, 10) for task, correct in row)
        failed = a_reply(
            run_id, 2 * step, "c1", status="failed", failure_reason="crashed",
            failure_detail=HOSTILE, num_examples=0, ranks={}, metrics={},
        )  # fmt: skip
        replies = (a_reply(run_id, 2 * step, "c0"), failed)
        store.commit_round(
            run_id,
            a_round(
                run_id, 2 * step, kind="evaluate", task_index=after, scores=scores, replies=replies
            ),
        )
        store.commit_round(run_id, a_round(run_id, 2 * step + 1, scores=(), metrics={"loss": 0.5}))
    store.transition(run_id, RunStatus.COMPLETED, expected=[RunStatus.RUNNING], reason="done")
    return store, run_id


def shown(store, run_id):
    return show(store.get_run(run_id), store.rounds(run_id), store.events(run_id))


def page_of(store, run_id):
    seen, now = RepliesSeen.of(store.rounds(run_id)), datetime(2026, 1, 2, tzinfo=UTC)
    return render_report(shown(store, run_id), seen, generated_at=now)


def test_show_has_the_documented_keys_and_is_strict_json(finished):
    result = shown(*finished)
    documented = {
        "run_id", "status", "config_digest", "seed", "tasks", "accuracy_matrix", "acc", "bwt",
        "fwt", "forgetting", "bytes_up", "bytes_down", "rounds", "duration_seconds", "adapter_path",
        "report_path", "clients", "events",
    }  # fmt: skip
    assert documented <= result.keys()
    json.dumps(result, allow_nan=False)
    assert result["accuracy_matrix"] == [[0.1, 0.1], [0.9, 0.2], [0.6, 0.8]]
    assert result["acc"] == pytest.approx(0.7)
    assert result["forgetting"] == pytest.approx(0.3)
    assert result["bytes_up"] == 7 * 12
    assert result["rounds"][1]["loss"] == 0.5
    assert result["rounds"][0]["clients_failed"] == 1
    (_, broken) = result["clients"]
    assert (broken["failures"], broken["failure_reasons"]) == (3, ["crashed"])


def test_a_listing_takes_its_metrics_from_the_progress(home):
    from datetime import timedelta

    store = home.store()
    run_id = new_run(store).run_id
    store.renew_lease(run_id, "me", timedelta(seconds=9), progress={"acc": 0.5, "bwt": math.nan})
    (listed,) = run_listing(store.list_runs())["runs"]
    assert (listed["run_id"], listed["acc"], listed["bwt"]) == (run_id, 0.5, None)


def test_comparing_names_exactly_the_settings_that_differ(finished):
    first = shown(*finished)
    second = json.loads(json.dumps(first))
    second["config"]["seed"] = 8
    second["config"]["extra"] = {"a": 1}
    found = compare([first, second])
    assert {row["key"]: row["values"] for row in found["config"]} == {
        "seed": [7, 8],
        "extra.a": [None, 1],
    }
    assert {row["metric"] for row in found["results"]} >= {"acc", "forgetting", "bytes_up"}


def test_pages_are_self_contained_and_escape_what_people_wrote(finished):
    result = shown(*finished)
    for page in (
        page_of(*finished),
        render_comparison([result, result]),
    ):
        assert HOSTILE not in page
        assert "&lt;script&gt;" in page
        assert not re.search(r"(src|href)=", page)
        assert "<script" not in page


def test_the_report_shows_matrix_failures_and_what_was_lost(finished):
    page = page_of(*finished)
    assert "0.900" in page
    assert "“first” has lost most, 30.0%" in page
    assert "3 answers did not count" in page
    assert page.count("<svg") >= 4


def test_a_run_that_has_not_begun_has_a_page_too(home):
    store = home.store()
    run_id = new_run(store).run_id
    page = page_of(store, run_id)
    assert "No task has been scored yet" in page
