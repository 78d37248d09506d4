"""Clients with little memory: what the planner gives them, what is recorded, who is left out."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.books import predicted
from orchestrator.conduct import conduct, submit
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.memory import excess, fitted_probe, in_words
from orchestrator.planner import plan_step
from orchestrator.store.base import RunStatus
from orchestrator.summary import show
from orchestrator.transport import InProcessTransport
from strategies.fitting import MIB, STEP_BYTES
from strategies.types import Dense, LowRank, Probe, client_ids
from strategies.wire import (
    decode_assignment,
    decode_profile,
    encode_assignment,
    encode_profile,
    kind_of,
)
from tests.conftest import tiny_config
from tests.orchestrator.builders import a_config, a_federation

GIB = 2**30
EXAMPLE = 10 * MIB
ROOM = 3.1 * 1.7 * EXAMPLE  # three examples and what passes by


def limited(profile, room: float, **changes):
    """A device of 1 GiB whose program leaves ``room`` bytes for training."""
    return dataclasses.replace(
        profile, kind="edge", memory_bytes=GIB, memory_limit_bytes=GIB,
        resident_bytes=int(GIB - STEP_BYTES - MIB - room), activation_bytes=EXAMPLE,
        longest_example=5, **changes,
    )  # fmt: skip


def plan_for(room: float, step_index=1, config=None, **changes):
    config, federation = config or a_config(), a_federation()
    first, *others = federation.clients
    clients = (limited(first, room, **changes), *others)
    federation = dataclasses.replace(federation, clients=clients)
    state = dataclasses.replace(initial_state(config, federation), step_index=step_index)
    return plan_step("run", config, federation, state, Fleet())


def test_a_client_without_a_limit_gets_the_message_it_always_got():
    order = plan_for(ROOM).orders[1]
    assert order.assignment.work.micro_batch_size is None
    message = encode_assignment(order.assignment, order.tensors)
    assert b"micro_batch_size" not in message
    assert b"checkpointing" not in message
    assert decode_assignment(message)[0] == order.assignment


def test_only_the_client_with_a_limit_gets_micro_batches_and_they_travel():
    plan = plan_for(ROOM)
    sizes = [order.assignment.work.micro_batch_size for order in plan.orders]
    assert sizes == [3, None, None]
    order = plan.orders[0]
    assert decode_assignment(encode_assignment(order.assignment, {}))[0] == order.assignment


def test_what_a_client_was_given_is_said_in_words():
    plan = plan_for(ROOM)
    metrics = predicted(plan.orders[0].assignment, plan)
    said = in_words(metrics, int(0.9 * GIB))
    assert said == "limit 1.00 GiB; micro-batches of 3; predicted 1.00 GiB, found 0.90 GiB"
    assert metrics["predicted_peak_bytes"] <= GIB
    assert in_words(predicted(plan.orders[1].assignment, plan), 5) is None


def test_what_does_not_fit_is_left_out_with_the_bytes_that_are_missing():
    plan = plan_for(-20 * MIB)
    assert [order.assignment.client_id for order in plan.orders] == ["client-1", "client-2"]
    (note,) = plan.notes
    assert note.startswith("client-0 left out: limit 1.00 GiB, its smallest plan needs 1.0")
    missing = int(note.split(" bytes are missing")[0].split()[-1])
    assert 19 * MIB < missing < 19 * MIB + 2 * EXAMPLE * 3.5
    again = plan_for(-20 * MIB + missing + 1)
    assert again.orders[0].assignment.client_id == "client-0"


def test_methods_that_need_whole_batches_are_not_cut():
    config = a_config(learning__methods=[{"name": "lwf"}])
    plan = plan_for(ROOM, config=config)
    assert [order.assignment.client_id for order in plan.orders] == ["client-1", "client-2"]
    whole = plan_for(4.1 * 1.7 * EXAMPLE, config=config).orders[0].assignment.work
    assert (whole.micro_batch_size, whole.checkpointing) == (None, False)


def test_a_probe_looks_at_as_many_examples_in_smaller_batches():
    plan = plan_for(ROOM)
    probe = Probe(tasks=(0,), statistics=("fisher",), batches=2, batch_size=4, learning_rate=0.1)
    plans = {spec.name: LowRank(rank=2) for spec in plan.view.groups if spec.linear}
    plans |= {spec.name: Dense() for spec in plan.view.groups if spec.kind == "head"}
    one, other, _ = plan.view.clients
    found = fitted_probe(probe, plan.view, one, plans)
    assert isinstance(found, Probe)
    assert (found.batch_size, found.batches) == (3, 3)
    assert fitted_probe(probe, plan.view, other, plans) == probe


def test_what_a_client_took_above_its_limit_is_counted():
    assert excess({"memory_limit_bytes": 100.0}, 130) == 30
    assert excess({"memory_limit_bytes": 100.0}, 100) == 0
    assert excess({}, 130) == 0


def on_little_memory(answer, room):
    """The endpoint of a client that says it has little memory; the rest of it is real."""

    def endpoint(message: bytes) -> bytes:
        reply = answer(message)
        if kind_of(message) != "recipe":
            return reply
        profile, values = decode_profile(reply)
        return encode_profile(limited(profile, room), values)

    return endpoint


@pytest.mark.parametrize("room", [ROOM, -20 * MIB])
def test_an_edge_client_takes_part_in_a_run_or_is_left_out_with_a_reason(home, room):
    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer

    config, ids = tiny_config(), client_ids(3)
    run_id = submit(config, home)
    trainer = LocalTrainer(
        ClientSettings(cache_folder=home.cache_folder, state_folder=home.client_folder)
    )
    endpoints = {c: lambda m, c=c: trainer.answer(c, m) for c in ids}
    endpoints[ids[0]] = on_little_memory(endpoints[ids[0]], room)
    assert conduct(run_id, config, InProcessTransport(endpoints), home) is RunStatus.COMPLETED
    store = home.store()
    shown = show(store.get_run(run_id), store.rounds(run_id), store.events(run_id))
    edge, other, _ = shown["clients"]
    assert other["memory_plan"] is None
    if room < 0:
        assert (edge["rounds"], edge["memory_plan"]) == (0, None)
        left = [e for e in shown["events"] if "left out" in e["message"]]
        assert len(left) == 4
        return
    assert edge["rounds"] == 4
    assert "limit 1.00 GiB; micro-batches of 3; predicted 1.00 GiB, found" in edge["memory_plan"]
    found = {r["peak_memory_bytes"] > GIB for s in shown["rounds"] for r in s["replies"]}
    events = [e for e in shown["events"] if e["kind"] == "memory-exceeded"]
    assert bool(events) == (True in found)  # this process serves all clients and is as large
