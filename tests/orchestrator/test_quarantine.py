"""Quarantine: who is put there for what, for how long, and what it does to a run."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from orchestrator.conduct import conduct, submit
from orchestrator.config import parse_config
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from orchestrator.quarantine import IS_FAULT, Stay, Ward
from orchestrator.sections import Quarantine
from orchestrator.store.base import ReplyRecord, RoundRecord, RunStatus
from orchestrator.summary import show
from strategies.errors import RoundFailedError
from strategies.types import FailureReason
from tests.conftest import tiny_config
from tests.orchestrator.builders import a_config, a_federation

RULE = Quarantine(faults=2, rounds=3)


def a_record(index, reasons, kind="train"):
    """A step in which each client failed for its reason, or did not."""
    replies = tuple(
        ReplyRecord(
            assignment_id=f"run/{index}/{client}", client_id=client,
            status="failed" if reason else "ok", failure_reason=reason, failure_detail=None,
            num_examples=0, ranks={}, bytes_down=0, bytes_up=0, seconds={}, metrics={},
            peak_memory_bytes=0,
        )
        for client, reason in reasons.items()
    )  # fmt: skip
    return RoundRecord(
        step_index=index, task_index=0, round_index=index, kind=kind, checkpoint="c",
        committed_at=datetime(2026, 1, 1, tzinfo=UTC), seconds={}, metrics={}, truncation={},
        replies=replies,
    )  # fmt: skip


def events_of(ward, records):
    """Events by step, and the ward after the last."""
    told = []
    for record in records:
        told += [(record.step_index, e.kind, e.message) for e in ward.noted(record).events]
        ward = ward.after(record)
    return told, ward


def test_by_hand():
    """Two faults of c1, in rounds 0 and 2, keep it away for rounds 3 to 5."""
    reasons = ["not-finite", None, "malformed", None, None, None, None]
    records = [a_record(i, {"c0": None, "c1": reason}) for i, reason in enumerate(reasons)]
    told, ward = events_of(Ward(rule=RULE), records)
    why = "1 malformed, 1 not-finite"
    assert told == [
        (2, "client-quarantined", f"c1 is not asked for 3 training rounds: {why}"),
        (5, "client-released", f"c1 is asked again; it was in quarantine for {why}"),
    ]
    assert not ward.stays
    assert not ward.faults  # it starts anew
    away = [i for i in range(7) if "c1" in Ward.of(RULE, records[:i]).stays]
    assert away == [3, 4, 5]  # before which steps it is not asked


def test_only_training_rounds_pass_the_time_and_every_step_counts_faults():
    kinds = ["evaluate", "probe", "evaluate", "head", "train", "replay", "train", "train"]
    faulty = ("malformed", "malformed")
    records = [
        a_record(i, {"c1": faulty[i] if i < 2 else None}, kind) for i, kind in enumerate(kinds)
    ]
    told, _ = events_of(Ward(rule=RULE), records)
    assert [(step, kind) for step, kind, _ in told] == [
        (1, "client-quarantined"), (7, "client-released")
    ]  # fmt: skip


@pytest.mark.parametrize("reason", list(FailureReason))
def test_which_reasons_are_faults(reason):
    records = [a_record(i, {"c1": reason.value}) for i in range(9)]
    assert bool(Ward.of(RULE, records).stays) == IS_FAULT[reason]
    innocent = {"deadline", "unreachable", "crashed", "stale", "busy", "no-room", "no-examples"}
    assert IS_FAULT[reason] == (reason.value not in {*innocent, "missing-tensors"})


def test_what_it_sends_while_away_does_not_keep_it_there():
    records = [a_record(i, {"c1": "malformed"}) for i in range(5)]
    ward = Ward.of(RULE, records)
    assert ward.stays == {}
    assert Ward.of(RULE, [*records, records[0]]).faults == {"c1": ("malformed",)}


def test_without_a_rule_nobody_is_put_there():
    assert Ward.of(None, [a_record(i, {"c1": "malformed"}) for i in range(9)]) == Ward()


def test_one_at_a_time_or_all_at_once_is_the_same():
    records = [
        a_record(i, {"c1": "outlier", "c2": "malformed" if i % 2 else None}) for i in range(9)
    ]
    fleet = Fleet.of(records[:4], RULE)
    for record in records[4:]:
        fleet.observe(record)
    assert fleet.ward == Ward.of(RULE, records)


def planned(config, kept, step_index=1):
    federation = a_federation()
    fleet = Fleet()
    fleet.ward = Ward(rule=RULE, stays={c: Stay(until=9, why="2 outlier") for c in kept})
    state = dataclasses.replace(initial_state(config, federation), step_index=step_index)
    plan = plan_step("run", config, federation, state, fleet)
    return [order.assignment.client_id for order in plan.orders], plan.notes


def test_who_is_in_quarantine_is_not_asked_to_train_and_is_scored():
    asked, notes = planned(a_config(), ["client-1"])
    assert asked == ["client-0", "client-2"]
    assert notes == (
        "cohort of 2 instead of 3: no more clients here hold examples, in quarantine: client-1",
    )
    assert len(planned(a_config(), ["client-1"], step_index=0)[0]) == 3


def test_who_is_in_quarantine_is_not_asked_for_sums():
    config = a_config(
        model__head="random-features", model__pooling="mean", strategy__head={"name": "analytic"},
        learning__adapted_tasks=0,
    )  # fmt: skip
    assert planned(config, ["client-1"])[0] == ["client-0", "client-2"]


@pytest.mark.parametrize(
    ("federation", "which"),
    [({"min_replies": 3}, "min_replies = 3"), ({"min_clients": 3}, "min_clients = 3")],
)
def test_too_few_that_remain_end_the_run_by_name(federation, which):
    config = a_config(federation={"clients": 3, **federation})
    with pytest.raises(RoundFailedError, match=rf"(?s)2 of the 3 .*{which} .*- client-1: 2 outl"):
        planned(config, ["client-1"])
    assert len(planned(config, [])[0]) == 3
    assert len(planned(a_config(), ["client-0", "client-1"])[0]) == 1  # one is enough by default


def broken(endpoint):
    """A client whose updates are NaN."""
    from strategies.types import Update
    from strategies.wire import decode_result, encode_result, kind_of

    def answer(message):
        reply = endpoint(message)
        result = decode_result(reply) if kind_of(reply) == "update" else None
        if not isinstance(result, Update) or not result.delta:
            return reply
        delta = {key: np.full_like(value, np.nan) for key, value in result.delta.items()}
        return encode_result(dataclasses.replace(result, delta=delta))

    return answer


def carried(home, run_id, config, on_progress=lambda: None):
    from functools import partial

    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer
    from orchestrator.transport import InProcessTransport
    from strategies.types import client_ids

    settings = ClientSettings(cache_folder=home.cache_folder, state_folder=home.client_folder)
    trainer = LocalTrainer(settings)
    endpoints = {c: partial(trainer.answer, c) for c in client_ids(config.federation.clients)}
    endpoints["client-1"] = broken(endpoints["client-1"])
    return conduct(run_id, config, InProcessTransport(endpoints, on_progress), home)


def story(store, run_id):
    asked = [
        (r.kind, tuple((reply.client_id, reply.failure_reason) for reply in r.replies))
        for r in store.rounds(run_id)
    ]
    events = [
        (event.kind, event.message)
        for event in store.events(run_id)
        if event.kind in ("client-quarantined", "client-released")
    ]
    return asked, events


def test_a_whole_run_and_the_same_run_stopped_half_way(home):
    tree = tiny_config(learning__rounds_per_task=4, learning__local_steps=1).model_dump(mode="json")
    tree["federation"]["quarantine"] = {"faults": 2, "rounds": 3}
    config, store = parse_config(tree), home.store()
    whole, other = (submit(config, home) for _ in range(2))
    assert carried(home, whole, config) is RunStatus.COMPLETED

    def stop() -> None:
        if len(store.rounds(other)) == 5:  # client-1 is in quarantine
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carried(home, other, config, stop)
    store.transition(other, RunStatus.INTERRUPTED, expected=tuple(RunStatus), reason="by the test")
    shown = show(store.get_run(other), store.rounds(other), store.events(other))
    assert [c["quarantine"] for c in shown["clients"]] == [None, "2 not-finite", None]
    assert carried(home, other, config) is RunStatus.COMPLETED

    asked, events = story(store, whole)
    trained = ["client-1" in dict(replies) for kind, replies in asked if kind == "train"]
    assert trained == [True, True, False, False, False, True, True, False]
    assert [kind for kind, _ in events] == [
        "client-quarantined", "client-released", "client-quarantined"
    ]  # fmt: skip
    assert story(store, other) == (asked, events)
    assert store.last_checkpoint(whole) == store.last_checkpoint(other)
