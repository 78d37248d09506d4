"""How a client's training is cut so that it fits in the memory it may take.

The levers are pulled in this order: fewer examples at once, which costs next to nothing; blocks
computed again instead of kept, which costs another forward pass; and what selectors and rank
policies do on their own, for which ``least_bytes`` is what a plan takes at the very least.
The constants were measured on the peak of whole processes (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from strategies.cost import FLOAT_BYTES, CostModel, Plans
from strategies.types import ClientProfile, GroupSpec

MIB: Final = 2**20
GIB: Final = 2**30
# What a process keeps of examples below frozen blocks: no more than this, nor than a share of its
# limit.
MOST_KEPT_BYTES: Final = 256 * MIB
_KEPT_SHARE: Final = 16
# Code and buffers that a first step brings in.
STEP_BYTES: Final = 96 * MIB
# Of what is kept for the backward pass, how much again comes and goes while it runs.
_PASSING: Final = 0.7
# With checkpointing a single block is kept, computed again, differentiated and freed.
_ONE_BLOCK: Final = 3.5
# A trained or received tensor is there as it came, as it is used, and as it is compared and sent.
_COPIES_OF_STATE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How work fits; ``micro_batch_size`` None computes whole batches at once.

    ``keeps``: there is room besides for what examples are below frozen blocks.
    """

    micro_batch_size: int | None
    checkpointing: bool
    peak_bytes: float
    keeps: bool = True

    @property
    def text(self) -> str:
        """What a client was given, for people."""
        size = self.micro_batch_size
        batches = f"micro-batches of {size}" if size else "whole batches"
        again = ", gradient checkpointing" if self.checkpointing else ""
        return f"{batches}{again}; predicted {gib(self.peak_bytes)}"


@dataclass(frozen=True, slots=True)
class TooLarge:
    """Work that does not fit whatever is done; ``missing_bytes`` at its smallest."""

    missing_bytes: float


def fit(costs: CostModel, plans: Plans, client: ClientProfile) -> Fit | TooLarge:
    """How ``plans`` fit in the client's limit; without one nothing is cut."""
    batch, smallest = costs.budget.batch_size, _smallest(costs)
    limit = inf if client.memory_limit_bytes is None else client.memory_limit_bytes
    for again in _ways(client):
        for size in range(batch, smallest - 1, -1):
            peak = peak_bytes(costs, plans, client, size, again=again)
            if peak <= limit:
                part = size if size < batch else None
                keeps = peak + kept_bytes(client.memory_limit_bytes) <= limit
                return Fit(micro_batch_size=part, checkpointing=again, peak_bytes=peak, keeps=keeps)
    return TooLarge(least_bytes(costs, plans, client) - limit)


def kept_bytes(limit_bytes: int | None) -> int:
    """The most a process keeps of examples below frozen blocks, where its plan says it may."""
    return min(MOST_KEPT_BYTES, limit_bytes // _KEPT_SHARE) if limit_bytes else MOST_KEPT_BYTES


def peak_bytes(
    costs: CostModel, plans: Plans, client: ClientProfile, examples: int, *, again: bool = False
) -> float:
    """The most a training process holds, ``examples`` at once, blocks computed ``again`` or not."""
    kept = examples * costs.kept_bytes(plans, client)
    passing = _PASSING * kept
    if again:
        borders = examples * _border_bytes(costs, plans, client)
        blocks = {spec.block for spec in _above(costs, plans) if spec.block is not None}
        kept, passing = borders, _ONE_BLOCK * kept / max(len(blocks), 1)
    return client.resident_bytes + STEP_BYTES + values_bytes(costs, plans) + kept + passing


def least_bytes(costs: CostModel, plans: Plans, client: ClientProfile) -> float:
    """What ``plans`` take with every lever pulled that may be."""
    examples = _smallest(costs)
    return min(peak_bytes(costs, plans, client, examples, again=again) for again in _ways(client))


def values_bytes(costs: CostModel, plans: Plans) -> float:
    """Memory of the trained values with their gradients and moments, and of the state they are."""
    state = costs.num_values(plans) * FLOAT_BYTES * _COPIES_OF_STATE
    return costs.adapter_bytes(plans) + state


def gib(num_bytes: float) -> str:
    """Bytes as people state memory."""
    return f"{num_bytes / GIB:.2f} GiB"


def _smallest(costs: CostModel) -> int:
    """The fewest examples that may be computed at once."""
    return 1 if costs.budget.divisible else costs.budget.batch_size


def _ways(client: ClientProfile) -> tuple[bool, ...]:
    """Whether blocks are computed again, the cheaper way first."""
    return (False, True) if client.recomputes else (False,)


def _above(costs: CostModel, plans: Plans) -> tuple[GroupSpec, ...]:
    deepest = costs.deepest(plans)
    return costs.groups[deepest:] if deepest is not None else ()


def _border_bytes(costs: CostModel, plans: Plans, client: ClientProfile) -> float:
    """What checkpointing keeps of one example: the input of every block."""
    widths = dict[int, int]()
    for spec in _above(costs, plans):
        if spec.linear and spec.block is not None:
            widths.setdefault(spec.block, spec.linear[1])
    tokens = client.longest_example or costs.tokens_per_example
    return tokens * sum(widths.values()) * FLOAT_BYTES
