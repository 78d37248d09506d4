"""Replies as they would have come in over the simulated links of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from orchestrator.config import RunConfig
from orchestrator.links import Journey
from orchestrator.plans import Order, Plan
from strategies.cost import CostModel
from strategies.types import Reply, Update, client_ids


def on_simulated_links(
    replies: Iterable[Reply],
    plan: Plan,
    config: RunConfig,
    now: float,
) -> Iterator[Reply]:
    """``replies`` clocked from the simulated second ``now`` on; as they are if links are real.

    Only training has a deadline: a probe must be answered for the round to be planned, and an
    evaluation is the experimenter's measurement.  With a buffer the clock decides whose updates are
    used; then it counts the tensors alone, since a message also holds measured times, whose digits
    differ from run to run.
    """
    if config.links is None:
        yield from replies
        return
    # By number and not by who is there, so that a client keeps its line whoever comes and goes.
    places = {c: index for index, c in enumerate(client_ids(config.federation.clients))}
    training = plan.step.kind in ("train", "replay")
    for order, reply in zip(plan.orders, replies, strict=True):
        journey = Journey(
            links=config.links,
            client=places[order.assignment.client_id],
            num_clients=len(places),
            seed=config.seed,
            start=now,
            deadline_seconds=config.federation.deadline_seconds if training else None,
        )
        compute = _compute_seconds(order, reply, plan, config.links.flops_per_second)
        if config.federation.buffer is None:
            yield journey.clocked(reply, compute)
        else:
            clocked = journey.clocked(replace(reply, bytes_up=_tensor_bytes(reply)), compute)
            yield replace(clocked, bytes_up=reply.bytes_up)


def _tensor_bytes(reply: Reply) -> int:
    if not isinstance(reply.result, Update):
        return 0
    return sum(x.nbytes for x in (*reply.result.delta.values(), *reply.result.sketches.values()))


def _compute_seconds(
    order: Order, reply: Reply, plan: Plan, flops_per_second: float | None
) -> float:
    """The client's own time: simulated from FLOPs where a device speed is given, else measured."""
    if flops_per_second is None:
        return reply.result.seconds.get("compute", 0.0) if isinstance(reply.result, Update) else 0.0
    assignment = order.assignment
    profile = next(c for c in plan.view.clients if c.client_id == assignment.client_id)
    steps = float(assignment.work.steps if assignment.work else 0)
    if probe := assignment.probe:
        examples = sum(profile.num_train[task] for task in probe.tasks)
        steps += examples / probe.batch_size if probe.batches is None else probe.batches
    costs = CostModel.of(plan.view.groups, plan.view.budget, profile)
    return steps * costs.flops_per_step(assignment.groups) / flops_per_second
