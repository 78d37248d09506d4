"""Screening in a step: who does not count, what is put on record, and what is remembered."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from orchestrator.records import round_record
from orchestrator.rounds import TooFewRepliesError, close_step
from strategies.errors import ConfigError
from strategies.types import Reply
from tests.orchestrator.builders import a_config, a_federation, an_update

CLIENTS = 7
FEDERATION = a_federation(((4, 4),) * CLIENTS)
MOVES = (0.010, 0.011, 0.012, 0.013, 0.014, 0.016, 10.0)  # the last is far from all others


def config_of(name, **changes):
    screening = {"name": name, **changes.pop("params", {})}
    return a_config(strategy__screening=screening, federation__clients=CLIENTS, **changes)


def closed(config, moves=MOVES, memories=None):
    state = dataclasses.replace(
        initial_state(config, FEDERATION), step_index=1, memories=memories or {}
    )
    plan = plan_step("run", config, FEDERATION, state, Fleet())
    results = [an_update(order, FEDERATION, m) for order, m in zip(plan.orders, moves, strict=True)]
    replies = [Reply(result=r, bytes_down=1, bytes_up=2, seconds=0.1) for r in results]
    return plan, close_step(state, plan, iter(replies), config=config, federation=FEDERATION)


def test_an_outlier_is_refused_by_name_with_its_score():
    config = config_of("multi-krum", params={"hostile": 0.2})  # f = 2 of 7
    plan, outcome = closed(config)
    *others, last = outcome.replies
    assert [reply.status for reply in others] == ["ok"] * 6
    assert (last.status, last.failure_reason) == ("failed", "outlier")
    assert "the most for an honest one" in last.failure_detail
    assert last.metrics["screening_score"] > last.metrics["screening_limit"]
    left_out = [r.client_id for r in others if r.metrics["screening_share"] == 0]
    assert left_out == ["client-5"]  # no fault: its reply is usable
    record = round_record(plan, outcome, "0" * 64, {})
    said = [e.message for e in record.events if e.kind == "screened"]
    assert said[0].startswith("multi-krum: client-5 left-out: score ")
    assert said[1].startswith("multi-krum: client-6 refused: score ")
    assert any(
        e.kind == "client-failed" and "client-6: outlier" in e.message for e in record.events
    )


def test_the_state_is_what_the_kept_updates_alone_give():
    _, screened = closed(config_of("multi-krum", params={"hostile": 0.2}))
    config = a_config(federation__clients=CLIENTS)
    few = a_federation(((4, 4),) * 5)
    state = dataclasses.replace(initial_state(config, few), step_index=1)
    plan = plan_step("run", config, few, state, Fleet())
    replies = [
        Reply(result=an_update(order, few, move), bytes_down=1, bytes_up=2, seconds=0.1)
        for order, move in zip(plan.orders, MOVES, strict=False)
    ]
    plain = close_step(state, plan, iter(replies), config=config, federation=few)
    for key, value in plain.state.tensors.items():
        np.testing.assert_array_equal(screened.state.tensors[key], value)
    _, unprotected = closed(a_config(federation__clients=CLIENTS))
    assert any(
        np.abs(unprotected.state.tensors[key] - value).max() > 1
        for key, value in plain.state.tensors.items()
    )


@pytest.mark.parametrize("name", ["exact", "fedavg", "ffa", "flora", "partition", "trimmed-mean"])
def test_it_stands_before_every_aggregation(name):
    config = config_of("norm-clipping", strategy__aggregation={"name": name})
    _, outcome = closed(config)
    assert all(np.abs(v).max() < 5 for v in outcome.state.tensors.values())
    assert outcome.replies[-1].metrics["screening_share"] < 0.01


def test_refused_replies_are_not_usable_and_left_out_ones_are():
    krum = {"params": {"hostile": 0.2}}
    closed(config_of("krum", federation__min_replies=6, **krum))
    with pytest.raises(TooFewRepliesError, match=r"6 usable replies, 7 needed\n.*outlier: score"):
        closed(config_of("krum", federation__min_replies=7, **krum))


def test_what_a_screener_remembers_is_in_the_state():
    config = config_of("norm-clipping", params={"past": 4})
    _, first = closed(config)
    (norms,) = {value.shape for value in first.state.memories["screening"].values()}
    assert norms == (1,)
    _, second = closed(config, [100 * m for m in MOVES], first.state.memories)
    shares = [reply.metrics["screening_share"] for reply in second.replies]
    assert max(shares) < 0.2  # judged by the round before
    assert all(v.shape == (2,) for v in second.state.memories["screening"].values())


def test_nothing_is_remembered_or_noted_without_screening():
    _, outcome = closed(a_config(federation__clients=CLIENTS))
    assert not outcome.screened
    assert "screening" not in outcome.state.memories
    assert all("screening_share" not in reply.metrics for reply in outcome.replies)


def test_a_cohort_too_small_for_krum_is_a_fault():
    with pytest.raises(ConfigError, match=r"federation.cohort: found 7, expected at least 9 upd"):
        config_of("krum")
    with pytest.raises(ConfigError, match=r"buffer.size: found 2, expected at least 9 updates"):
        a_config(
            strategy__screening={"name": "krum"},
            federation__clients=12,
            federation__buffer={"size": 2},
            strategy__aggregation={"name": "fedavg"},
        )


def test_whole_updates_must_be_seen():
    with pytest.raises(ConfigError, match="leaves parts of the model with the clients"):
        a_config(
            strategy__screening={"name": "norm-clipping"}, strategy__aggregation={"name": "fedsa"}
        )


def test_unknown_parameters_and_ranges_are_faults():
    with pytest.raises(ConfigError, match=r"strategy.screening.hostile: found 0.5"):
        config_of("krum", params={"hostile": 0.5})
    with pytest.raises(ConfigError, match=r"strategy.screening.bounds: found a parameter"):
        config_of("norm-clipping", params={"bounds": 1.0})
