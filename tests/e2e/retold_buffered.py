"""What a buffered run must have come to by its records: who answered which order, and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.buffer import Pair
from orchestrator.carrier import Carrier
from orchestrator.checkpoint import load_state
from orchestrator.config import parse_config
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.home import Home
from orchestrator.planner import plan_step
from orchestrator.plans import Order
from orchestrator.store.base import RoundRecord
from strategies.types import ClientId, GlobalState, Reply
from tests.e2e.retold import answered_here, everybody_here


@dataclass
class Told:
    """A transport on which orders are answered when ``record``, the step at hand, says so."""

    answer: Callable[[Order, object], Reply]
    record: RoundRecord | None = None
    orders: dict[str, Order] = field(default_factory=dict)  # under way, by assignment

    def busy(self) -> frozenset[ClientId]:
        return frozenset(order.assignment.client_id for order in self.orders.values())

    def exchange(self, orders: Sequence[Order], **_: object) -> Iterator[Reply]:
        told = {reply.client_id: reply for reply in self.record.replies}
        return (self.answer(order, told[order.assignment.client_id]) for order in orders)

    def flush(self, orders: Sequence[Order], **_: object) -> list[Pair]:
        self.orders |= {order.assignment.assignment_id: order for order in orders}
        taken = [(self.orders.pop(told.assignment_id), told) for told in self.record.replies]
        return [(order, self.answer(order, told)) for order, told in taken]

    def drop(self) -> list[Pair]:
        assert not self.orders, "at a task's end every order is on record"
        return []


def retold_buffered(
    run_id: str, home: Home, folder: Path, num_threads: int
) -> Iterator[tuple[GlobalState, GlobalState]]:
    """As ``retold`` does: the state that the records lead to, and the one that was checkpointed.

    An order is made when its assignment's step was planned and used where its reply is on record.
    """
    config = parse_config(home.store().get_run(run_id).config, source=run_id)
    everybody, trainer = everybody_here(config, folder, num_threads)
    rounds = home.store().rounds(run_id)
    asked = [reply.assignment_id for record in rounds for reply in record.replies]
    told = Told(lambda order, reply: answered_here(trainer, order, reply))
    carrier, state, fleet = (
        Carrier(config=config, transport=told),
        initial_state(config, everybody),
        Fleet(),
    )
    for record in rounds:
        told.record, fleet.busy = record, told.busy()
        begun = {x.rpartition("/")[2] for x in asked if _step_of(x) == record.step_index}
        there = tuple(c for c in everybody.clients if c.client_id in begun | fleet.busy)
        federation = dataclasses.replace(everybody, clients=there)
        plan = plan_step(run_id, config, federation, state, fleet)
        assert plan is not None
        assert {order.assignment.client_id for order in plan.orders} == begun
        carried = carrier.carried(state, plan, fleet, federation, lambda _: None)
        state = carried.closed(state, config, federation).state
        fleet.observe(record)
        yield state, load_state(record.checkpoint, home.blobs())


def _step_of(assignment_id: str) -> int:
    return int(assignment_id.split("/")[1].partition(".")[0])
