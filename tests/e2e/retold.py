"""What a run must have come to by what its records say: who answered, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from clients.settings import ClientSettings
from clients.trainer import LocalTrainer
from orchestrator.checkpoint import load_state
from orchestrator.config import RunConfig, parse_config
from orchestrator.federation import Federation, initial_state
from orchestrator.fleet import Fleet
from orchestrator.home import Home
from orchestrator.planner import plan_step
from orchestrator.plans import Order
from orchestrator.rounds import close_step
from orchestrator.store.base import ReplyRecord
from orchestrator.transport import InProcessTransport, failure, to_reply
from strategies.types import ClientProfile, FailureReason, GlobalState, Reply, client_ids
from strategies.wire import encode_assignment


def retold(
    run_id: str, home: Home, folder: Path, num_threads: int
) -> Iterator[tuple[GlobalState, GlobalState]]:
    """Per committed step, the state its records lead to and the one that was checkpointed.

    Plans every step anew for those whom its records name, has those train here whose reply was
    used, and merges what they give.  Holds where a client's own state does not depend on rounds
    that were lost: not with replay memories.
    """
    config = parse_config(home.store().get_run(run_id).config, source=run_id)
    everybody, trainer = everybody_here(config, folder, num_threads)
    state, fleet = initial_state(config, everybody), Fleet()
    for record in home.store().rounds(run_id):
        named = {reply.client_id: reply for reply in record.replies}
        there = tuple(
            _as_fast(c, named[c.client_id]) for c in everybody.clients if c.client_id in named
        )
        federation = dataclasses.replace(everybody, clients=there)
        plan = plan_step(run_id, config, federation, state, fleet)
        assert plan is not None
        assert {o.assignment.client_id for o in plan.orders} == set(named)
        replies = [
            answered_here(trainer, order, named[order.assignment.client_id])
            for order in plan.orders
        ]
        state = close_step(state, plan, replies, config=config, federation=federation).state
        fleet.observe(record)
        yield state, load_state(record.checkpoint, home.blobs())


def everybody_here(
    config: RunConfig, folder: Path, num_threads: int
) -> tuple[Federation, LocalTrainer]:
    """All clients of a run in this process, and the trainer that answers for them."""
    trainer = LocalTrainer(
        ClientSettings(
            cache_folder=folder / "cache", state_folder=folder / "state", num_threads=num_threads
        )
    )
    ids = client_ids(config.federation.clients)
    endpoints = {client: partial(trainer.answer, client) for client in ids}
    everybody = InProcessTransport(endpoints).federation(
        config.shared_recipe().model_dump_json(), timeout_seconds=600, on_wait=lambda _: None
    )
    return everybody, trainer


def answered_here(trainer: LocalTrainer, order: Order, told: ReplyRecord) -> Reply:
    """The reply to ``order`` on record: the failure it was, or the same answer made anew."""
    if told.status == "failed":
        lost = failure(order, FailureReason(told.failure_reason), str(told.failure_detail))
        return to_reply(order, 0, lost, 0.0)
    message = encode_assignment(order.assignment, order.tensors)
    answer = trainer.answer(order.assignment.client_id, message)
    return to_reply(order, len(message), answer, 0.0)


def _as_fast(client: ClientProfile, told: ReplyRecord) -> ClientProfile:
    """With the speed that its work was planned with; a device's first is its own measurement."""
    seconds = told.metrics.get("predicted_seconds")
    if not seconds:
        return client
    return dataclasses.replace(client, flops_per_second=told.metrics["flops"] / seconds)
