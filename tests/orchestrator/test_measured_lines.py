"""Links measured on a Grid: what comes after a client's own work is the line's."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from flwr.supercore.task_identity import TaskIdentity

from orchestrator import fleet as fleet_module
from orchestrator import flower_courier, flower_flights, flower_post, flower_transport
from orchestrator.books import reply_record
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.flower_transport import FlowerTransport
from orchestrator.planner import plan_step
from strategies.types import LowRank
from strategies.wire import (
    decode_assignment,
    encode_profile,
    encode_result,
    from_record,
    kind_of,
    to_record,
)
from tests.contract.test_run_store import a_round
from tests.orchestrator.builders import a_config, a_federation, an_update

COMPUTE = 0.05


@pytest.fixture(autouse=True)
def _a_server(monkeypatch):
    """Flower makes messages only in a process that has a run; the clock runs as we say."""
    CLOCK.now = 0.0
    for module in (flower_transport, flower_post, flower_flights, flower_courier):
        monkeypatch.setattr(module, "time", CLOCK)
    for name, value in (("task_id", 1), ("run_id", 1), ("node_id", 1)):
        monkeypatch.setattr(TaskIdentity, f"_{name}", value)


class Clock:
    """Time that passes only while somebody sleeps."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


CLOCK = Clock()


class Lines:
    """A Grid whose nodes answer at once over lines of so many bytes per second each."""

    def __init__(self, federation, rates):
        self.federation, self.rates, self.due, self.orders = federation, rates, {}, {}
        self.count = 0

    def get_nodes(self):
        return [SimpleNamespace(node_id=n, last_activated_at="") for n in range(len(self.rates))]

    def push_messages(self, messages):
        for message in messages:
            self.count += 1
            node, name = message.metadata.dst_node_id, f"m{self.count}"
            answer, seconds = self._answer(node, from_record(message.content))
            self.due[name] = (CLOCK.monotonic() + seconds, answer)
            yield name

    def pull_messages(self, pending):
        for name in sorted(pending):
            when, answer = self.due[name]
            if CLOCK.monotonic() >= when:
                metadata = SimpleNamespace(reply_to_message_id=name)
                yield SimpleNamespace(
                    metadata=metadata, content=to_record(answer), has_error=lambda: False
                )

    def _answer(self, node, message):
        if kind_of(message) == "recipe":
            return encode_profile(self.federation.clients[node], {}), 0.0
        update = self.orders[decode_assignment(message)[0].client_id]
        answer = encode_result(dataclasses.replace(update, seconds={"compute": COMPUTE}))
        return answer, COMPUTE + (len(message) + len(answer)) / self.rates[node]


def test_lines_are_measured_and_ranks_follow_them(monkeypatch):
    monkeypatch.setattr(fleet_module, "_SMALL_EXCHANGE_BYTES", 0)  # a model of very few bytes
    config = a_config(
        strategy__rank={"name": "spectral", "rank": 4}, federation__deadline_seconds=3.0
    )
    federation, rates = a_federation(), (2e3, 1e6, 1e6)
    state = dataclasses.replace(initial_state(config, federation), step_index=1)
    grid = Lines(federation, rates)
    transport = FlowerTransport(grid, 3)  # type: ignore[arg-type]  # as much of one as is used
    transport.federation("recipe", timeout_seconds=10, on_wait=lambda _: None)
    plan = plan_step("run", config, federation, state, Fleet())
    grid.orders = {o.assignment.client_id: an_update(o, federation) for o in plan.orders}
    replies = list(transport.exchange(plan.orders, timeout_seconds=30, on_wait=lambda _: None))
    records = tuple(
        reply_record(order.assignment, reply, {})
        for order, reply in zip(plan.orders, replies, strict=True)
    )
    fleet = Fleet.of([dataclasses.replace(a_round(0), replies=records)])
    slow, fast, _ = (fleet.known(client) for client in federation.clients)
    assert slow.uplink_bytes_per_second == pytest.approx(2e3, rel=0.05)  # less what polling adds
    assert fast.uplink_bytes_per_second > 5 * slow.uplink_bytes_per_second
    speed = {"flops_per_second": 1e9, "memory_bytes": 2**30}
    clients = tuple(dataclasses.replace(c, **speed) for c in federation.clients)
    known = dataclasses.replace(federation, clients=clients)
    again = plan_step("run", config, known, dataclasses.replace(state, step_index=2), fleet)
    ranks = {
        o.assignment.client_id: sum(
            p.rank for p in o.assignment.groups.values() if isinstance(p, LowRank)
        )
        for o in again.orders
    }
    assert ranks.get(slow.client_id, 0) < ranks[fast.client_id]


def test_seconds_are_counted_from_each_clients_own_push():
    federation = a_federation()
    config = a_config()
    state = dataclasses.replace(initial_state(config, federation), step_index=1)
    grid = Lines(federation, (1e9, 1e9, 1e9))
    transport = FlowerTransport(grid, 3)  # type: ignore[arg-type]
    transport.federation("recipe", timeout_seconds=10, on_wait=lambda _: None)
    plan = plan_step("run", config, federation, state, Fleet())
    grid.orders = {o.assignment.client_id: an_update(o, federation) for o in plan.orders}
    push = grid.push_messages

    def slowly(messages):
        CLOCK.sleep(0.2)  # a server that takes its time to hand on each message
        return push(messages)

    grid.push_messages = slowly
    started = CLOCK.monotonic()
    replies = list(transport.exchange(plan.orders, timeout_seconds=30, on_wait=lambda _: None))
    whole = CLOCK.monotonic() - started
    assert whole > 0.6
    assert replies[2].seconds < whole - 0.35
