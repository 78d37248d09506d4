"""What every run database promises (``orchestrator/store/base.py``), on files and real servers."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.store import SqlRunStore, open_store
from orchestrator.store.address import make_engine
from orchestrator.store.base import (
    EventRecord,
    ReplyRecord,
    RoundRecord,
    RunRecord,
    RunStatus,
    RunStore,
    ScoreRecord,
)
from strategies.errors import RunNotFoundError, StaleRunStatusError

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MINUTE = timedelta(seconds=60)


@pytest.fixture
def store(database_url: str) -> RunStore:
    return open_store(database_url)


def new_run(store: RunStore, **changes: object) -> RunRecord:
    values = {
        "name": "probe",
        "config": {"seed": 1},
        "config_digest": "d",
        "code_version": "0",
        "environment": {"python": "3"},
    }
    return store.create_run(**(values | changes))


def a_reply(run_id: str, step: int, client: str, **changes: object) -> ReplyRecord:
    values = {
        "assignment_id": f"{run_id}/{step:05d}/{client}",
        "client_id": client,
        "status": "ok",
        "failure_reason": None,
        "failure_detail": None,
        "num_examples": 5,
        "ranks": {"q": 2, "head": 0},
        "bytes_down": 2**40,
        "bytes_up": 7,
        "seconds": {"total": 0.5},
        "metrics": {"loss": math.nan},
        "peak_memory_bytes": 9,
        "client_kind": "edge",
    }
    return ReplyRecord(**(values | changes))


def score_of(client: str, after: int, task: int, correct: int, examples: int) -> ScoreRecord:
    return ScoreRecord(
        client_id=client,
        after_task=after,
        task_index=task,
        num_examples=examples,
        num_correct=correct,
        loss_sum=1.0,
    )


def a_round(run_id: str, step: int = 0, **changes: object) -> RoundRecord:
    values = {
        "step_index": step,
        "task_index": 0,
        "round_index": step,
        "kind": "train",
        "committed_at": NOW,
        "checkpoint": f"digest-{step}",
        "seconds": {"exchange": 1.5},
        "metrics": {"loss": math.inf},
        "truncation": {"q": 0.1},
        "drift": {"q": 0.25},
        "replies": tuple(a_reply(run_id, step, f"c{i}") for i in range(2)),
        "scores": (
            ScoreRecord(
                client_id="c0", after_task=-1, task_index=0, num_examples=4, num_correct=3,
                loss_sum=-math.inf, num_lost=2**33, num_gained=1, num_compared=2**34,
            ),
        ),
        "events": (EventRecord(at=NOW, kind="planned", message="späť", data={"x": [1, None]}),),
    }  # fmt: skip
    return RoundRecord(**(values | changes))


def test_a_new_run_reads_back_as_it_was_made(store):
    run = new_run(store, config={"a": {"b": [1, 2.5, None, "ž"]}, "nan": math.nan})
    found = store.get_run(run.run_id)
    assert found.status is RunStatus.CREATED
    assert found.config["a"] == {"b": [1, 2.5, None, "ž"]}
    assert math.isnan(found.config["nan"])
    assert found.created_at.tzinfo is not None
    assert [event.kind for event in store.events(run.run_id)] == ["status"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(st.text(max_size=5).filter(lambda k: k != "$float"), JSON, max_size=3)
)
def test_any_json_survives_with_nan_and_infinities(store, config):
    run = new_run(store, config=config)
    assert repr(store.get_run(run.run_id).config) == repr(config)


def test_runs_are_listed_newest_first_and_by_status(store):
    ids = [new_run(store).run_id for _ in range(3)]
    store.transition(ids[0], RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="go")
    listed = [run.run_id for run in store.list_runs()]
    assert set(listed) == set(ids)
    assert store.list_runs()[0].created_at >= store.list_runs()[-1].created_at
    assert [run.run_id for run in store.list_runs(status=[RunStatus.RUNNING])] == [ids[0]]
    assert len(store.list_runs(limit=2)) == 2


def test_a_run_is_found_by_prefix_and_as_latest(store):
    first, second = new_run(store), new_run(store)
    assert store.get_run("latest").run_id == second.run_id
    assert store.get_run(first.run_id).run_id == first.run_id
    with pytest.raises(RunNotFoundError, match="start of 2 runs"):
        store.get_run(first.run_id[:9])


def test_an_unknown_run_names_the_nearest(store):
    with pytest.raises(RunNotFoundError, match="no runs yet"):
        store.get_run("x")
    run = new_run(store)
    with pytest.raises(RunNotFoundError, match=run.run_id):
        store.get_run("20" + "9" * 6)


def test_transitions_keep_the_times_and_the_history(store):
    run = new_run(store)
    running = store.transition(
        run.run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="go"
    )
    assert running.started_at is not None
    assert running.ended_at is None
    stopped = store.transition(
        run.run_id, RunStatus.INTERRUPTED, expected=[RunStatus.RUNNING], reason="stop"
    )
    assert stopped.ended_at is not None
    again = store.transition(
        run.run_id, RunStatus.RUNNING, expected=[RunStatus.INTERRUPTED], reason="resume"
    )
    assert again.started_at == running.started_at
    assert again.ended_at is None
    messages = [event.message for event in store.events(run.run_id)]
    assert messages == ["created: submitted", "running: go", "interrupted: stop", "running: resume"]


def test_a_refused_transition_names_the_status_and_writes_nothing(store):
    run = new_run(store)
    before = store.events(run.run_id)
    with pytest.raises(StaleRunStatusError, match="is created, expected running"):
        store.transition(run.run_id, RunStatus.FAILED, expected=[RunStatus.RUNNING], reason="no")
    assert store.get_run(run.run_id) == run
    assert store.events(run.run_id) == before


def race(contenders, *functions):
    """Call everything at once; the results, exceptions included."""
    barrier = threading.Barrier(contenders)

    def call(function):
        barrier.wait()
        try:
            return function()
        except StaleRunStatusError as error:
            return error

    with ThreadPoolExecutor(contenders) as pool:
        return list(pool.map(call, functions))


def test_racing_transitions_have_one_winner(store):
    for _ in range(5):
        run_id = new_run(store).run_id
        results = race(
            8,
            *[
                lambda i=i, run_id=run_id: store.transition(
                    run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason=str(i)
                )
                for i in range(8)
            ],
        )
        assert sum(isinstance(result, RunRecord) for result in results) == 1


def test_racing_commits_have_one_winner_and_leave_no_orphans(store):
    run_id = new_run(store).run_id
    record = a_round(run_id)
    results = race(8, *[lambda: store.commit_round(run_id, record)] * 8)
    assert sorted(results) == [False] * 7 + [True]
    assert len(store.rounds(run_id)) == 1
    assert len(store.rounds(run_id)[0].replies) == 2


def test_racing_leases_have_one_holder(store):
    run_id = new_run(store).run_id
    ttl = timedelta(seconds=60)
    results = race(8, *[lambda i=i: store.renew_lease(run_id, str(i), ttl) for i in range(8)])
    assert sum(results) == 1


def test_a_lease_is_kept_by_its_holder_and_free_after_its_time(store):
    run_id = new_run(store).run_id
    assert store.renew_lease(run_id, "a", timedelta(seconds=60), progress={"phase": "x"})
    assert not store.renew_lease(run_id, "b", timedelta(seconds=60), progress={"phase": "y"})
    assert store.get_run(run_id).progress == {"phase": "x"}
    assert store.renew_lease(run_id, "a", timedelta(seconds=-1))
    assert store.renew_lease(run_id, "b", timedelta(seconds=60))
    store.release_lease(run_id, "a")
    assert store.get_run(run_id).lease_owner == "b"
    store.release_lease(run_id, "b")
    assert store.get_run(run_id).lease_owner is None


def test_a_round_reads_back_whole(store):
    run_id = new_run(store).run_id
    record = a_round(run_id)
    assert store.commit_round(run_id, record)
    (found,) = store.rounds(run_id)
    assert repr(found.replies) == repr(record.replies)
    assert found.scores == record.scores
    assert (found.metrics, found.drift) == (record.metrics, record.drift)
    assert found.committed_at == NOW
    assert store.events(run_id)[-1] == record.events[0]


def test_rounds_that_are_read_a_few_at_a_time_are_the_same(store):
    run, other = new_run(store), new_run(store)
    for step in range(23):
        store.commit_round(run.run_id, a_round(run.run_id, step, metrics={}, scores=()))
        store.commit_round(other.run_id, a_round(other.run_id, step))
    one_by_one = [replace(r, replies=()) for r in store.each_round(run.run_id)]
    assert one_by_one == [replace(r, replies=()) for r in store.rounds(run.run_id)]
    asked = [reply.assignment_id for r in store.each_round(run.run_id) for reply in r.replies]
    assert asked == [f"{run.run_id}/{step:05d}/c{i}" for step in range(23) for i in range(2)]
    assert [len(r.scores) for r in store.each_round(other.run_id)] == [1] * 23


def test_a_second_commit_of_a_step_is_refused_whole(store):
    run_id = new_run(store).run_id
    assert store.commit_round(run_id, a_round(run_id))
    other = a_round(run_id, checkpoint="other", replies=(a_reply(run_id, 0, "c9"),))
    assert not store.commit_round(run_id, other)
    assert [r.client_id for r in store.rounds(run_id)[0].replies] == ["c0", "c1"]
    assert store.last_checkpoint(run_id) == "digest-0"


def test_checkpoints_come_newest_first_whatever_the_order_of_commits(store):
    run_id = new_run(store).run_id
    assert store.last_checkpoint(run_id) is None
    for step in (0, 2, 1):
        store.commit_round(run_id, a_round(run_id, step))
    assert store.checkpoints(run_id) == ["digest-2", "digest-1", "digest-0"]
    assert store.get_run(run_id).checkpoint == "digest-2"
    assert store.list_runs()[0].checkpoint == "digest-2"


def test_rewinding_forgets_later_steps_and_says_so(store):
    run_id = new_run(store).run_id
    for step in range(3):
        store.commit_round(run_id, a_round(run_id, step))
    store.rewind(run_id, 1)
    assert [r.step_index for r in store.rounds(run_id)] == [0]
    assert store.events(run_id)[-1].kind == "rewound"
    assert store.commit_round(run_id, a_round(run_id, 1))
    count = len(store.events(run_id))
    store.rewind(run_id, 5)
    assert len(store.events(run_id)) == count


def test_times_are_kept_in_utc_and_naive_ones_are_refused(store):
    run_id = new_run(store).run_id
    away = timezone(timedelta(hours=5))
    store.commit_round(run_id, a_round(run_id, committed_at=NOW.astimezone(away)))
    assert store.rounds(run_id)[0].committed_at.utcoffset() == timedelta(0)
    assert store.rounds(run_id)[0].committed_at == NOW
    with pytest.raises(Exception, match="naive time"):
        store.commit_round(run_id, a_round(run_id, 1, committed_at=NOW.replace(tzinfo=None)))
    assert len(store.rounds(run_id)) == 1


def test_what_is_learnt_later_is_recorded(store):
    run_id = new_run(store).run_id
    store.describe(run_id, task_names=["a", "b"])
    store.set_adapter_path(run_id, "/somewhere")
    store.append_event(run_id, "note", "hello", {"n": 1})
    found = store.get_run(run_id)
    assert (found.task_names, found.adapter_path) == (("a", "b"), "/somewhere")
    assert store.events(run_id)[-1].data == {"n": 1}


def test_two_engines_may_open_one_database(database_url):
    """What one writes the other reads, and both may write."""
    first, second = open_store(database_url), SqlRunStore(make_engine(database_url))
    run_id = new_run(first).run_id
    race(
        2,
        lambda: [first.append_event(run_id, "a", str(i)) for i in range(20)],
        lambda: [second.append_event(run_id, "b", str(i)) for i in range(20)],
    )
    assert len(second.events(run_id)) == 41


def test_events_of_one_commit_keep_their_order(store):
    run_id = new_run(store).run_id
    several = tuple(EventRecord(at=NOW, kind="note", message=str(i)) for i in range(40))
    store.commit_round(run_id, a_round(run_id, events=several))
    assert store.events(run_id)[1:] == list(several)


def test_replies_and_scores_keep_their_order(store):
    run_id = new_run(store).run_id
    clients = [f"c{i % 7}{i}" for i in range(1200)]
    replies = tuple(a_reply(run_id, 0, client) for client in clients)
    scores = tuple(score_of(client, 0, 0, 1, 2) for client in clients)
    store.commit_round(run_id, a_round(run_id, replies=replies, scores=scores))
    (found,) = store.rounds(run_id)
    assert [reply.client_id for reply in found.replies] == clients
    assert found.scores == scores


def test_what_a_client_says_is_kept_as_far_as_every_database_can_hold_it(store):
    """A byte that PostgreSQL's text cannot hold must not cost the whole round."""
    run_id = new_run(store, name="n\x00").run_id
    said = "torch said \x00 and half a \ud83d pair, ž 🌱"
    failed = a_reply(run_id, 0, "c0", status="failed", failure_detail=said)
    event = EventRecord(at=NOW, kind="client-failed", message=said, data={"said\x00": said})
    assert store.commit_round(run_id, a_round(run_id, replies=(failed,), events=(event,)))
    kept = "torch said � and half a � pair, ž 🌱"
    assert store.rounds(run_id)[0].replies[0].failure_detail == kept
    assert store.events(run_id)[-1].message == kept
    assert store.events(run_id)[-1].data == {"said\x00": said}
    assert store.get_run(run_id).name == "n�"


def test_large_json_and_extreme_numbers_survive(store):
    config = {
        "words": ["ž" * 1000] * 2000,
        "floats": [5e-324, -0.0, 1.7976931348623157e308, math.inf, -math.inf],
        "integers": [2**63, -(10**40)],
        "flags": [True, False, None],
        "order": {"b": 1, "a": 2},
    }
    found = store.get_run(new_run(store, config=config).run_id).config
    assert repr(found) == repr(config)


def test_flags_and_losses_keep_their_kind(store):
    run_id = new_run(store).run_id
    scores = tuple(
        replace(score_of("c0", 0, 0, 1, 2), mid_task=mid, loss_sum=loss)
        for mid, loss in ((True, math.nan), (False, 1e-300), (True, -math.inf))
    )
    store.commit_round(run_id, a_round(run_id, scores=scores))
    assert repr(store.rounds(run_id)[0].scores) == repr(scores)


def test_an_expired_lease_has_one_new_holder(database_url):
    """Two orchestrators, each with its own connections, take over from a third that is gone."""
    stores = [open_store(database_url), SqlRunStore(make_engine(database_url))]
    for _ in range(10):
        run_id = new_run(stores[0]).run_id
        stores[0].renew_lease(run_id, "gone", timedelta(seconds=-1))
        won = race(
            2,
            *[
                lambda i=i, run_id=run_id: stores[i].renew_lease(run_id, f"new-{i}", MINUTE)
                for i in range(2)
            ],
        )
        assert sorted(won) == [False, True]
        assert stores[0].get_run(run_id).lease_owner == f"new-{won.index(True)}"
