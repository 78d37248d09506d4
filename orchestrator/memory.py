"""What a client with little memory is given, why, and what it took of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from strategies.cost import CostModel, Plans
from strategies.fitting import Fit, TooLarge, fit, gib, peak_bytes
from strategies.types import ClientProfile, Probe, RoundView, Work


def fitted(work: Work, view: RoundView, client: ClientProfile, plans: Plans) -> Work | TooLarge:
    """``work``, cut so that the client's process stays within its limit."""
    found = fit(CostModel.of(view.groups, view.budget, client), plans, client)
    if isinstance(found, TooLarge):
        return found
    return replace(
        work,
        micro_batch_size=found.micro_batch_size,
        checkpointing=found.checkpointing,
        keeps=found.keeps,
    )


def fitted_probe(
    probe: Probe, view: RoundView, client: ClientProfile, plans: Plans
) -> Probe | TooLarge:
    """The same examples in smaller batches, as many as the client can hold the gradients of.

    Means over batches then weigh a last, smaller batch a little more than before.
    """
    costs = CostModel.of(view.groups, replace(view.budget, divisible=True), client)
    found = fit(costs, plans, replace(client, recomputes=False))
    if isinstance(found, TooLarge):
        return found
    if found.micro_batch_size is None:
        return probe
    batches = probe.batches and math.ceil(probe.batches * probe.batch_size / found.micro_batch_size)
    return replace(probe, batch_size=found.micro_batch_size, batches=batches)


def refusal(client: ClientProfile, found: TooLarge) -> str:
    """Why a client is left out of a round, for the record."""
    limit, missing = client.memory_limit_bytes or 0, math.ceil(found.missing_bytes)
    return (
        f"{client.client_id} left out: limit {gib(limit)}, its smallest plan needs "
        f"{gib(limit + missing)}, {missing} bytes are missing; raise its limit, or lower ranks "
        "or the number of layers"
    )


def predictions(
    work: Work, costs: CostModel, plans: Plans, client: ClientProfile
) -> dict[str, float]:
    """What a client with a limit was given, by metric; nothing for others."""
    if client.memory_limit_bytes is None:
        return {}
    examples = work.micro_batch_size or costs.budget.batch_size
    return {
        "memory_limit_bytes": float(client.memory_limit_bytes),
        "micro_batch_size": float(work.micro_batch_size or 0),
        "checkpointing": float(work.checkpointing),
        "predicted_peak_bytes": peak_bytes(
            costs, plans, client, examples, again=work.checkpointing
        ),
    }


def in_words(metrics: Mapping[str, float], peak_memory_bytes: int) -> str | None:
    """The last of ``predictions`` a client was given and what it took; None without a limit."""
    if "memory_limit_bytes" not in metrics:
        return None
    given = Fit(
        micro_batch_size=int(metrics["micro_batch_size"]) or None,
        checkpointing=bool(metrics["checkpointing"]),
        peak_bytes=metrics["predicted_peak_bytes"],
    )
    limit = gib(metrics["memory_limit_bytes"])
    found = f", found {gib(peak_memory_bytes)}" if peak_memory_bytes else ""
    return f"limit {limit}; {given.text}{found}"


def excess(metrics: Mapping[str, float], peak_memory_bytes: int) -> int:
    """Bytes by which a client was found above its limit; 0 where it was not, or has none."""
    limit = metrics.get("memory_limit_bytes", math.inf)
    return int(peak_memory_bytes - limit) if peak_memory_bytes > limit else 0
