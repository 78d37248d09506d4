"""What pages ask a run database (``orchestrator/store/browsing.py``), on files and real servers."""

from __future__ import annotations

import json
import math
from dataclasses import astuple, replace
from datetime import timedelta

import pytest

from orchestrator.digest import Digest
from orchestrator.store import open_store
from orchestrator.store.base import RunStatus
from orchestrator.store.browsing import EventWindow, Wanted, Window
from orchestrator.store.scores import ScoreTable
from orchestrator.store.totals import client_totals, step_of
from orchestrator.summary import outline, overview, show, shown_clients
from strategies.errors import RunNotFoundError, StaleRunStatusError, StoreError
from tests.contract.test_run_store import a_reply, a_round, new_run, race
from tests.orchestrator.recorded_run import recorded_run

RUN, ROUNDS, _ = recorded_run()


@pytest.fixture
def store(database_url: str):
    return open_store(database_url)


def of_run(run_id: str, record):
    replies = tuple(
        replace(reply, assignment_id=f"{run_id}/{reply.assignment_id}") for reply in record.replies
    )
    return replace(record, replies=replies)


def recorded(store, steps: int | None = None) -> str:
    run_id = new_run(store, config=RUN.config).run_id
    store.describe(run_id, task_names=RUN.task_names)
    for record in ROUNDS[:steps]:
        assert store.commit_round(run_id, of_run(run_id, record))
    return run_id


def assert_sums_are_right(store, run_id: str) -> None:
    """The sums kept are those of the replies there are, to the bit."""
    rounds, sums = store.rounds(run_id), store.sums(run_id)
    assert [step.totals for step in sums.steps] == [step_of(record).totals for record in rounds]
    assert list(sums.clients) == client_totals(rounds)
    assert sums.run.checkpoint == (rounds[-1].checkpoint if rounds else None)
    assert_same_scores(sums.scores, ScoreTable.of_rounds(rounds))
    drift = store.drift(run_id)
    assert {group: None for each in rounds for group in each.drift} == dict.fromkeys(drift.groups)
    assert drift.tasks == [each.task_index for each in rounds if each.drift]
    assert [
        [each.drift.get(group, math.nan) for group in drift.groups] for each in rounds if each.drift
    ] == [pytest.approx(row, nan_ok=True, rel=0) for row in drift.values]


def assert_same_scores(found: ScoreTable, expected: ScoreTable) -> None:
    assert found.clients == expected.clients
    assert found.numbers.tolist() == expected.numbers.tolist()


def test_sums_are_those_of_the_replies(store):
    run_id = recorded(store)
    assert_sums_are_right(store, run_id)
    assert len(store.sums(run_id).clients) == 10


def test_a_course_is_of_the_same_run_as_its_sums(store):
    run_id = recorded(store)
    course, sums = store.course(run_id), store.sums(run_id)
    assert course.run == sums.run
    assert_same_scores(course.scores, sums.scores)
    costs = [
        (
            s.record.kind,
            s.record.task_index,
            s.record.seconds,
            s.totals.bytes_up,
            s.totals.bytes_down,
        )
        for s in sums.steps
    ]
    assert [astuple(cost) for cost in course.costs] == costs
    whole = show(store.get_run(run_id), store.rounds(run_id), ())
    found = outline(course)
    assert {key: whole[key] for key in found} | {"duration_seconds": None} == found
    with pytest.raises(RunNotFoundError):
        store.course("nothing")


def test_a_client_is_of_the_kind_it_last_said(store):
    run_id = new_run(store).run_id
    for step, kinds in enumerate((("edge", None), ("gpu", None), (None, "cpu"))):
        replies = [
            a_reply(run_id, step, client, client_kind=kind)
            for client, kind in zip(("c0", "c1"), kinds, strict=True)
        ]
        store.commit_round(run_id, a_round(run_id, step, replies=tuple(replies)))
    assert [each.kind for each in store.sums(run_id).clients] == ["gpu", "cpu"]
    assert [each.totals.kind for each in store.client_runs("c0", offset=0, limit=9)] == ["gpu"]
    assert_sums_are_right(store, run_id)
    store.rewind(run_id, 1)
    assert [each.kind for each in store.sums(run_id).clients] == ["edge", None]


def test_a_step_that_is_there_already_is_summed_once(store):
    run_id = recorded(store, 5)
    before = store.sums(run_id).clients
    assert not store.commit_round(run_id, of_run(run_id, ROUNDS[4]))
    other = replace(of_run(run_id, ROUNDS[5]), step_index=4, checkpoint="other")
    assert not store.commit_round(run_id, other)
    assert store.sums(run_id).clients == before
    assert_sums_are_right(store, run_id)


def test_a_rewound_run_is_summed_by_what_is_left_and_by_what_comes_again(store):
    run_id = recorded(store, 9)
    store.rewind(run_id, 4)
    assert_sums_are_right(store, run_id)
    assert store.get_run(run_id).checkpoint == ROUNDS[3].checkpoint
    for record in ROUNDS[4:8]:
        assert store.commit_round(run_id, of_run(run_id, record))
    assert_sums_are_right(store, run_id)
    store.rewind(run_id, 0)
    assert store.sums(run_id).clients == []
    assert store.get_run(run_id).checkpoint is None


def test_racing_commits_are_summed_like_any_others(store):
    run_id = new_run(store).run_id
    made = race(
        8,
        *[lambda i=i: store.commit_round(run_id, a_round(run_id, i // 2)) for i in range(8)],
    )
    assert sorted(made) == [False] * 4 + [True] * 4
    assert_sums_are_right(store, run_id)
    assert store.get_run(run_id).checkpoint == "digest-3"


def test_a_refused_commit_changes_no_sum(store):
    run_id = recorded(store, 3)
    taken = replace(ROUNDS[3], replies=(a_reply(run_id, 0, "c0"),) * 2)  # one assignment twice
    with pytest.raises(Exception, match="assignment"):
        store.commit_round(run_id, taken)
    assert_sums_are_right(store, run_id)


def test_nan_and_unknown_reasons_are_summed_too(store):
    run_id = new_run(store).run_id
    replies = (
        a_reply(run_id, 0, "c0", metrics={"loss": math.nan, "staleness": math.nan}),
        a_reply(run_id, 0, "c1", status="failed", num_examples=0),
    )
    store.commit_round(run_id, a_round(run_id, replies=replies))
    (step,), (good, bad) = store.sums(run_id).steps, store.sums(run_id).clients
    assert math.isnan(good.last_metrics["loss"])
    assert (bad.failures, step.totals.failures) == ({"unknown": 1}, (("c1", None),))
    assert step.totals.staleness is None


def test_a_digest_of_sums_says_what_the_whole_run_says(store):
    run_id = recorded(store)
    digest, drift = Digest.by_sums(store.sums(run_id)), store.drift(run_id)
    whole = show(store.get_run(run_id), store.rounds(run_id), store.events(run_id))
    found = overview(digest, drift, store.events(run_id))
    assert {k: whole[k] for k in found} | {"duration_seconds": None} == found
    assert shown_clients(digest) == whole["clients"]
    json.dumps(found, allow_nan=False)


def test_deleting_a_run_takes_its_sums_and_tags(store):
    run_id, other = recorded(store, 2), recorded(store, 2)
    store.tag(run_id, add=["gone"], remove=[])
    store.delete_run(run_id)
    assert store.known_tags() == {}
    assert [each.num_runs for each in store.known_clients("", offset=0, limit=99)] == [1] * 10
    with pytest.raises(RunNotFoundError):
        store.sums(run_id)
    assert_sums_are_right(store, other)


def made(store, name: str, acc: float | None = None, tag: str = "") -> str:
    run_id = new_run(store, name=name).run_id
    if acc is not None:
        store.renew_lease(run_id, "me", timedelta(0), progress={"acc": acc, "forgetting": math.nan})
    if tag:
        store.tag(run_id, add=[tag], remove=[])
    return run_id


def ids(store, **wanted) -> list[str]:
    return [run.run_id for run in store.find_runs(Wanted(**wanted)).runs]


def test_runs_are_found_by_text_tag_and_status_and_sorted(store):
    a, b, c = made(store, "Alpha", 0.2, "paper"), made(store, "beta", 0.9), made(store, "100%_x")
    store.transition(b, RunStatus.FAILED, expected=[RunStatus.CREATED], reason="x")
    assert ids(store) == [c, b, a]
    assert ids(store, descending=False) == [a, b, c]
    assert ids(store, text="ALPH") == [a]
    assert ids(store, text="pape") == [a]
    assert ids(store, text=b[-4:]) == [b]
    assert ids(store, text="%_") == [c]
    assert ids(store, text="_") == [c]
    assert ids(store, tag="paper") == [a]
    assert ids(store, tag="pape") == []
    assert ids(store, status=[RunStatus.FAILED]) == [b]
    assert ids(store, sort="acc") == [b, a, c]
    assert ids(store, sort="acc", descending=False) == [a, b, c]
    assert store.count_by_status() == {RunStatus.CREATED: 2, RunStatus.FAILED: 1}
    assert store.find_runs(Wanted(tag="paper")).runs[0].tags == ("paper",)


def test_pages_of_runs_hold_every_run_once(store):
    made_so = [made(store, f"run {i}", acc=0.5) for i in range(7)]
    for sort in ("created", "acc", "forgetting"):
        # What ties is in the order of ids, which differ in letters drawn within a second.
        everything = made_so[::-1] if sort == "created" else sorted(made_so, reverse=True)
        pages = [store.find_runs(Wanted(sort=sort, offset=at, limit=3)) for at in (0, 3, 6, 9)]
        assert [run.run_id for page in pages for run in page.runs] == everything
        assert {page.total for page in pages} == {7}


def test_tags_are_kept_sorted_once_and_refused_if_odd(store):
    run_id = new_run(store).run_id
    assert store.tag(run_id, add=["b", "a", "b", " c "], remove=[]).tags == ("a", "b", "c")
    assert store.tag(run_id, add=["b"], remove=["c", "never"]).tags == ("a", "b")
    assert store.known_tags() == {"a": 1, "b": 1}
    for odd in ("", " ", "x" * 81, "two\nlines"):
        with pytest.raises(StoreError, match="expected one line"):
            store.tag(run_id, add=[odd], remove=[])
    with pytest.raises(RunNotFoundError):
        store.tag("nothing", add=["a"], remove=[])
    race(8, *[lambda i=i: store.tag(run_id, add=[f"t{i % 4}"], remove=[]) for i in range(8)])
    assert store.get_run(run_id).tags == ("a", "b", "t0", "t1", "t2", "t3")


def test_windows_of_steps_replies_and_clients(store):
    run_id = recorded(store, 8)
    assert [s.record.step_index for s in store.steps(run_id, Window(first=3, limit=2))] == [3, 4]
    assert tuple(store.replies(run_id, 3)) == store.rounds(run_id)[3].replies
    assert store.replies(run_id, 99) == []
    client = RUN_CLIENT
    parts = store.client_parts(run_id, client)
    assert [part.step.step_index for part in parts] == list(range(8))
    assert {part.reply.client_id for part in parts} == {client}
    assert store.client_parts(run_id, "nobody") == []


RUN_CLIENT = ROUNDS[0].replies[2].client_id


def test_a_client_is_known_over_runs_newest_first(store):
    first, second = recorded(store, 2), recorded(store, 3)
    runs = store.client_runs(RUN_CLIENT, offset=0, limit=5)
    assert [each.run_id for each in runs] == sorted([first, second], reverse=True)
    assert [each.totals.asked for each in runs] == [
        {first: 2, second: 3}[each.run_id] for each in runs
    ]
    assert len(store.client_runs(RUN_CLIENT, offset=1, limit=5)) == 1
    (known,) = store.known_clients(RUN_CLIENT, offset=0, limit=5)
    assert (known.client_id, known.num_runs) == (RUN_CLIENT, 2)
    assert len(store.known_clients("", offset=8, limit=5)) == 2


def test_a_pulse_and_events_tell_where_a_run_is(store):
    run_id = new_run(store).run_id
    before = store.pulse(run_id)
    assert (before.num_steps, before.last_step, before.status) == (0, -1, RunStatus.CREATED)
    store.commit_round(run_id, a_round(run_id, 4))
    after = store.pulse(run_id)
    assert (after.num_steps, after.last_step) == (1, 4)
    (new,) = store.event_window(run_id, EventWindow(after=before.last_event))
    assert (new.number, new.event.kind) == (after.last_event, "planned")
    newest = store.event_window(run_id, EventWindow(before=after.last_event + 1, limit=1))
    assert newest == [new]
    assert store.event_window(run_id, EventWindow(kinds=["nothing"])) == []
    with pytest.raises(RunNotFoundError):
        store.pulse("nothing")


def test_a_led_run_keeps_its_sums_when_its_deletion_is_refused(store):
    run_id = recorded(store, 2)
    store.transition(
        run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="go", owner="a"
    )
    with pytest.raises(StaleRunStatusError):
        store.delete_run(run_id)
    assert_sums_are_right(store, run_id)
