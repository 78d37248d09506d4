"""Who is there, who is refused, and how it is told."""

from __future__ import annotations

import dataclasses

from orchestrator.attendance import Changes, LateReply, noted, revised
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from orchestrator.store.base import RoundRecord
from strategies.types import ClientId, TaskInfo
from tests.orchestrator.builders import a_config, a_federation

EVERYBODY = a_federation()
A, B, C = EVERYBODY.clients
TWO = dataclasses.replace(EVERYBODY, clients=(A, C))


def kinds(notices):
    return [(notice.kind, notice.message) for notice in notices]


def test_newcomers_are_added_in_order_and_those_who_left_are_remembered():
    after, notices = revised(TWO, Changes(left=(A.client_id,), joined=(B,)))
    assert [c.client_id for c in after.clients] == ["client-1", "client-2"]
    assert after.absent == (A,)
    assert kinds(notices) == [
        ("client-left", "client-0 left"),
        ("client-joined", "client-1 joined"),
    ]
    again, notices = revised(after, Changes(joined=(A,)))
    assert again.clients == EVERYBODY.clients
    assert again.absent == ()
    assert kinds(notices) == [("client-joined", "client-0 came back")]


def test_who_left_and_was_back_at_once_is_there_and_both_are_on_record():
    after, notices = revised(EVERYBODY, Changes(left=(B.client_id,), joined=(B,)))
    assert after == EVERYBODY
    assert [notice.kind for notice in notices] == ["client-left", "client-joined"]


def test_leaving_without_having_been_there_is_nothing():
    assert revised(TWO, Changes(left=(ClientId("client-1"),))) == (TWO, ())


def test_a_newcomer_with_another_model_or_other_tasks_is_refused_by_name():
    other_model = dataclasses.replace(
        B, model=dataclasses.replace(B.model, base_digest="another-base")
    )
    other_tasks = dataclasses.replace(B, tasks=(TaskInfo(name="x", labels=("9",)),))
    for wrong, why in ((other_model, "base model another-base"), (other_tasks, "on the tasks")):
        after, (notice,) = revised(TWO, Changes(joined=(wrong,)))
        assert after == TWO
        assert notice.kind == "client-refused"
        assert "client-1" in notice.message
        assert why in notice.message
    assert len(revised(TWO, Changes(joined=(other_model, B)))[0].clients) == 3


def test_why_somebody_could_not_introduce_themselves_is_on_record():
    _, notices = revised(TWO, Changes(faults=("no such data set",)))
    assert kinds(notices) == [("client-refused", "no such data set")]


def test_late_and_repeated_replies_name_client_step_delay_and_bytes():
    late = LateReply(
        kind="late", assignment_id="run/00003/client-1", client_id=ClientId("client-1"),
        step_index=3, seconds_late=2.25, bytes_up=1234,
    )  # fmt: skip
    assert noted(late).message == "client-1 answered step 3: 1234 bytes 2.2 s too late, not used"
    assert noted(late).data["seconds_late"] == 2.25
    assert noted(dataclasses.replace(late, kind="duplicate")).kind == "client-twice"


def test_every_attempt_draws_its_own_cohort_and_names_its_own_assignments():
    config = a_config(federation__clients=8, federation__cohort=3)
    federation = a_federation(((4, 4),) * 8)
    state = dataclasses.replace(initial_state(config, federation), step_index=1)
    fleet, cohorts, names = Fleet(), [], set()
    for _ in range(6):
        orders = plan_step("run", config, federation, state, fleet).orders
        cohorts.append(tuple(o.assignment.client_id for o in orders))
        names |= {o.assignment.assignment_id for o in orders}
        fleet.failed(1.5)
    assert len(names) == 18
    assert len(set(cohorts)) > 1
    assert plan_step("run", config, federation, state, Fleet()).orders[0].assignment == (
        plan_step("run", config, federation, state, Fleet()).orders[0].assignment
    )


def test_the_clock_counts_failed_attempts_once_and_then_forgets_them():
    fleet = Fleet(now=10.0)
    fleet.failed(1.5)
    fleet.failed(2.0)
    assert (fleet.attempt, fleet.lost_seconds) == (2, 3.5)
    record = RoundRecord(
        step_index=1, task_index=0, round_index=0, kind="train", committed_at=None,
        checkpoint="", seconds={"simulated": 3.5 + 4.0}, metrics={}, truncation={},
    )  # fmt: skip
    fleet.observe(record)
    assert (fleet.now, fleet.attempt, fleet.lost_seconds) == (17.5, 0, 0.0)
