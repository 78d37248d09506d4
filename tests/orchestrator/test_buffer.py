"""The buffer: who is taken, with which weight, what is dropped; against a slow reference."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.buffer import Filling, UnderWay, busy_in, weight_of
from orchestrator.carrier import Carrier
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from orchestrator.schedule import schedule
from orchestrator.sections import Buffer
from orchestrator.transport import failure
from orchestrator.under_way import packed, unpacked
from strategies.errors import ConfigError
from strategies.types import HEAD, FailureReason, Holding, ParamKey, Reply, client_ids
from tests.orchestrator.builders import a_config, a_federation, an_update

BIAS = ParamKey(HEAD, "bias")


def config(clients=4, size=2, max_staleness=10, rounds=6, **changes):
    return a_config(
        federation__clients=clients,
        federation__buffer={"size": size, "max_staleness": max_staleness},
        learning__rounds_per_task=rounds,
        strategy__rank={"name": "dense"},
        **changes,
    )


class Clocked:
    """Clients that take a known time and move every value by a known step."""

    def __init__(self, federation, durations, lost=()):
        self.federation, self.durations, self.lost = federation, durations, lost

    def exchange(self, orders, *, timeout_seconds, on_wait):
        for order in orders:
            client, version = order.assignment.client_id, order.assignment.round_index
            took = self.durations[int(client[-1])][version]
            update = an_update(order, self.federation, fill=delta(client, version))
            counts = {group: np.array(examples(client)) for group in update.num_examples}
            result = dataclasses.replace(update, num_examples=counts)
            if (int(client[-1]), version) in self.lost:
                result = failure(order, FailureReason.CRASHED, "scripted")
            yield Reply(
                result=result, bytes_down=5, bytes_up=7, seconds=took,
                link={"down": 0.0, "compute": took, "up": 0.0},
            )  # fmt: skip


def delta(client, version):
    return 0.01 * (int(client[-1]) + 1) + 0.1 * version


def examples(client):
    return 3 + 2 * int(client[-1])


def run_task(settings, durations, lost=()):
    """The rounds of the first task: the head's bias after each, and what was recorded."""
    federation = a_federation(((40, 40),) * settings.federation.clients)
    carrier = Carrier(config=settings, transport=Clocked(federation, durations, lost))
    state = dataclasses.replace(initial_state(settings, federation), step_index=1)
    fleet, values, records = Fleet(), [], []
    for _ in range(settings.learning.rounds_per_task):
        fleet.busy = carrier.busy(state)
        plan = plan_step("run", settings, federation, state, fleet)
        carried = carrier.carried(state, plan, fleet, federation, lambda _: None)
        outcome = carried.closed(state, settings, federation)
        state, fleet.now = outcome.state, fleet.now + outcome.simulated_seconds
        values.append(float(state.tensors[BIAS][0]) if BIAS in state.tensors else 0.0)
        records.append(outcome)
    return values, records, fleet.now, state


def fedbuff(clients, rounds, size, max_staleness, durations, lost=()):
    """Slow reference: arrivals one by one on a clock."""
    x, now, working, values = 0.0, 0.0, {}, []
    for version in range(rounds):
        for client in set(clients) - set(working):
            working[client] = (now + durations[int(client[-1])][version], version)
        total = weight = used = 0.0
        while working and used < size:
            client = min(working, key=lambda c: (*working[c], c))
            arrived, begun = working.pop(client)
            now, staleness = max(now, arrived), version - begun
            if staleness <= max_staleness and (int(client[-1]), begun) not in lost:
                share = examples(client) / math.sqrt(1 + staleness)
                total, weight, used = total + share * delta(client, begun), weight + share, used + 1
        x += total / weight
        values.append(x)
    return values, now


def drawn_durations(clients, rounds, seed=0):
    return np.random.default_rng(seed).uniform(1, 9, (clients, rounds)).tolist()


DURATIONS = st.integers(0, 10_000).map(lambda seed: drawn_durations(4, 6, seed))


@settings(max_examples=6)
@given(durations=DURATIONS, size=st.integers(1, 4), max_staleness=st.integers(1, 4))
def test_it_is_the_slow_reference(durations, size, max_staleness):
    chosen = config(size=size, max_staleness=max_staleness)
    values, _, now, _ = run_task(chosen, durations)
    expected, ends = fedbuff(client_ids(4), 6, size, max_staleness, durations)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert now == pytest.approx(ends)


@settings(max_examples=6)
@given(durations=DURATIONS, size=st.integers(1, 3))
def test_every_order_is_on_record_once_and_no_client_twice_in_a_step(durations, size):
    _, records, _, state = run_task(config(size=size, max_staleness=2), durations, [(0, 0), (2, 1)])
    names = [x.assignment_id for outcome in records for x in outcome.replies]
    assert len(names) == len(set(names))
    for index, outcome in enumerate(records):
        clients = [x.client_id for x in outcome.replies]
        assert clients == sorted(set(clients))
        assert sum(x.status == "ok" for x in outcome.replies) <= size
        for x in outcome.replies:
            begun = int(x.assignment_id.split("/")[1]) - 1
            assert x.metrics["staleness"] == index - begun
            assert x.metrics["staleness"] <= 2 or x.failure_reason in ("stale", "crashed")
            assert (x.failure_reason == "crashed") <= (
                (x.client_id[-1], begun) in [("0", 0), ("2", 1)]
            )
    # The task's end is a barrier: everybody was asked, and every order has come to something.
    assert not busy_in(state)
    asked = sum(len(outcome.replies) for outcome in records)
    assert asked == 4 + sum(len(outcome.replies) for outcome in records[:-1])


def test_a_clients_failure_fills_no_place():
    durations = [[1.0] * 6, [2.0] * 6, [3.0] * 6, [40.0] * 6]
    _, records, _, _ = run_task(config(), durations, lost=[(0, 0)])
    first = records[0]
    assert [x.failure_reason for x in first.replies] == ["crashed", None, None]
    assert first.simulated_seconds == pytest.approx(3.0)


def test_what_is_too_stale_is_put_on_record_and_not_used():
    durations = [[1.0] * 6, [1.0] * 6, [1.0] * 6, [3.5] * 6]
    chosen = config(size=3, max_staleness=2)
    values, records, _, _ = run_task(chosen, durations)
    (late,) = [x for x in records[3].replies if x.client_id == "client-3"]
    assert (late.failure_reason, late.metrics["staleness"]) == ("stale", 3.0)
    assert "3 rounds ago, federation.buffer allows 2" in late.failure_detail
    assert late.bytes_up == 7
    kept, _ = fedbuff(client_ids(4), 6, 3, 10, durations)
    assert values[3] != pytest.approx(kept[3])


def test_at_the_end_of_a_task_the_work_under_way_is_dropped_with_its_reason():
    durations = [[1.0] * 6, [1.0] * 6, [1.0] * 6, [100.0] * 6]
    _, records, now, _ = run_task(config(size=3), durations)
    (lost,) = [x for x in records[-1].replies if x.client_id == "client-3"]
    assert lost.failure_reason == "stale"
    assert "under way since round 0 when its task ended" in lost.failure_detail
    assert (lost.bytes_down, lost.bytes_up) == (5, 0)
    assert now == pytest.approx(6.0)


def test_weights_are_those_of_the_paper():
    assert [weight_of(s) for s in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]


def test_work_under_way_survives_a_checkpoint_bit_by_bit():
    federation = a_federation()
    plan = plan_step(
        "run", a_config(), federation,
        dataclasses.replace(initial_state(a_config(), federation), step_index=1), Fleet(),
    )  # fmt: skip
    items = []
    for number, order in enumerate(plan.orders):
        order = dataclasses.replace(order, holding=Holding(step=1, ranks={"a": 2}, own=("b",)))
        result = an_update(order, federation, fill=0.1 / 3)
        if number == 2:
            result = failure(order, FailureReason.CRASHED, "why")
        reply = Reply(result=result, bytes_down=1, bytes_up=2, seconds=1 / 3, link={"up": 0.1})
        items.append(UnderWay(order=order, reply=reply, arrives=2 / 3))
    memory = packed(items)
    back = unpacked(memory)
    assert packed(back).keys() == memory.keys()
    for client, array in memory.items():
        np.testing.assert_array_equal(packed(back)[client], array)
    for before, after in zip(items, back, strict=True):
        assert after.order.assignment.plan_hash() == before.order.assignment.plan_hash()
        assert after.order.holding == before.order.holding
        assert (after.arrives, after.reply.seconds) == (before.arrives, before.reply.seconds)


def test_without_links_those_asked_first_are_first():
    federation, chosen = a_federation(((4, 4),) * 4), config()
    state = dataclasses.replace(initial_state(chosen, federation), step_index=1)
    orders = plan_step("run", chosen, federation, state, Fleet()).orders
    step = schedule(chosen, 2)[2]
    plan = dataclasses.replace(plan_step("run", chosen, federation, state, Fleet()), step=step)
    old, new = orders[3], orders[0]
    later = dataclasses.replace(new.assignment, step_index=2, round_index=1)
    items = [
        UnderWay(order=order, reply=Reply(
            result=an_update(order, federation), bytes_down=0, bytes_up=0, seconds=0.0
        ), arrives=0.0)
        for order in (dataclasses.replace(new, assignment=later), old)
    ]  # fmt: skip
    flush = Filling(plan=plan, buffer=Buffer(size=1)).simulated(items, 0.0)
    assert [o.assignment.client_id for o in flush.plan.orders] == ["client-3"]


DENSE, FEDAVG = {"name": "dense"}, {"name": "fedavg"}
REFUSED = {
    "federation.buffer.size": {"federation__buffer": {"size": 5}},
    "federation.min_replies": {"federation__min_replies": 3},
    "federation.deadline_seconds": {"federation__deadline_seconds": 9.0},
    "strategy.rank.name": {
        "strategy__rank": {"name": "adalora"},
        "strategy__aggregation": FEDAVG,
    },
    "replay.rounds.name": {
        "replay__rounds": {"name": "fpf"},
        "learning__methods": [{"name": "er"}],
    },
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_does_not_go_with_a_buffer_is_refused(key):
    tree = {"federation__buffer": {"size": 2}, "strategy__rank": DENSE} | REFUSED[key]
    with pytest.raises(ConfigError) as caught:
        a_config(federation__clients=4, **tree)
    (fault,) = caught.value.faults
    assert fault.key == key
    assert "buffer" in fault.expected or key == "federation.buffer.size"


@pytest.mark.parametrize(
    "name", ["exact", "fedex", "flora", "flexlora", "hetlora", "rolora", "fedavg", "ffa", "fedsa"]
)
def test_only_aggregations_that_can_add_to_a_later_state_go_with_a_buffer(name):
    def build():
        return a_config(
            federation__buffer={"size": 2},
            strategy__aggregation={"name": name},
            strategy__rank={"name": "fixed", "rank": 2},
        )

    if name in ("fedavg", "ffa", "fedsa"):
        assert build().federation.buffer.size == 2
        return
    with pytest.raises(ConfigError) as caught:
        build()
    assert [fault.key for fault in caught.value.faults] == ["strategy.aggregation.name"]
