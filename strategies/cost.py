"""What training a set of groups costs: values, bytes, memory, FLOPs and, once measured, seconds.

Groups come in the order of the forward pass.  The backward pass must reach the deepest trained
group, the one nearest to the input, and pays the gradient of the activations of everything above
it, trained or not; below it nothing is kept and nothing is differentiated, and where nothing there
is random, an example passes through only once.  The weight gradient is paid by trained
groups alone.
Source: the cost model of GreenTrainer, arXiv 2309.13192; departs: it knows LoRA, counts optimizer
and activation memory, and is scaled by each client's measured step times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from strategies.types import (
    ClientProfile,
    Dense,
    GroupName,
    GroupPlan,
    GroupSpec,
    LowRank,
    RoundBudget,
)

FLOAT_BYTES: Final = 4
# A trained value has its gradient and AdamW's two moments beside it.
_TRAINING_COPIES: Final = 3
# Besides the inputs of linear modules a block keeps its attention weights, norms and activations;
# on three models these are 0.9 to 1.6 times as much again (docs/performance.md).
_OTHER_ACTIVATIONS: Final = 1.5

# Until something has been measured: a slow line and a small device, so that first plans are small.
UNMEASURED_BYTES_PER_SECOND: Final = 62.5e3
UNMEASURED_FLOPS_PER_SECOND: Final = 5e9
# A message's header: the recipe and what is said of the round, and each planned group's share.
_HEADER_BYTES: Final = 6 * 1024
_HEADER_BYTES_PER_GROUP: Final = 320

Plans = Mapping[GroupName, GroupPlan]


def cautious(client: ClientProfile) -> ClientProfile:
    """The profile with slow values in place of what has not been measured yet."""
    uplink = client.uplink_bytes_per_second or UNMEASURED_BYTES_PER_SECOND
    return replace(
        client,
        flops_per_second=client.flops_per_second or UNMEASURED_FLOPS_PER_SECOND,
        uplink_bytes_per_second=min(uplink, client.uplink_limit_bytes_per_second or uplink),
        downlink_bytes_per_second=client.downlink_bytes_per_second or UNMEASURED_BYTES_PER_SECOND,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCost:
    """FLOPs of one token: forward, activation gradient, weight gradient if trained densely."""

    forward: float
    activation_gradient: float
    weight_gradient: float


def num_values(spec: GroupSpec, plan: GroupPlan) -> int:
    """Values a client trains and, unless it keeps some, sends."""
    if isinstance(plan, Dense):
        return sum(math.prod(shape) for shape in spec.parts.values())
    d_out, d_in = _linear(spec)
    return plan.rank * (d_in * plan.train_a + d_out * plan.train_b)


def group_cost(spec: GroupSpec) -> GroupCost:
    """A matrix product costs 2·d_in·d_out per token in each direction; the rest is negligible."""
    if spec.kind == "embedding" or (spec.linear is None and spec.kind != "head"):
        return GroupCost(forward=0.0, activation_gradient=0.0, weight_gradient=0.0)
    products = 2.0 * sum(math.prod(s) for s in spec.parts.values() if len(s) == 2)
    return GroupCost(forward=products, activation_gradient=products, weight_gradient=products)


def lora_flops(spec: GroupSpec, rank: int) -> float:
    """One token through A and B: forward; gradients cost twice that."""
    d_out, d_in = _linear(spec)
    return 2.0 * rank * (d_in + d_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Costs of plans on one model, with one client's examples and one round's work.

    ``groups`` in the order of the forward pass; ``tokens_per_example`` as the client measured it.
    ``met`` is the share of a round's examples, counted each time a step sees them, that the blocks
    below all trained ones compute: 1 where what comes out of them is not kept.
    """

    groups: tuple[GroupSpec, ...]
    budget: RoundBudget
    tokens_per_example: float
    met: float = 1.0

    @classmethod
    def of(
        cls, groups: tuple[GroupSpec, ...], budget: RoundBudget, client: ClientProfile
    ) -> CostModel:
        """The costs ``client`` would meet; its batches are no larger than what it holds.

        A client that can keep what comes out of frozen blocks does so in a round whose steps pass
        through all its examples; that it did in an earlier round is not counted on.
        """
        held = budget.held(client)
        if held:
            budget = replace(budget, batch_size=min(budget.batch_size, held))
        passes = max(budget.steps * budget.batch_size, 1)
        met = held / passes if client.keeps and held else 1.0
        tokens = client.tokens_per_example
        return cls(groups=groups, budget=budget, tokens_per_example=tokens, met=min(met, 1.0))

    def num_values(self, plans: Plans) -> int:
        """Trained values of all planned groups."""
        return sum(num_values(spec, plans[spec.name]) for spec in self.groups if spec.name in plans)

    def bytes_up(self, plans: Plans) -> float:
        """Bytes of an update's tensors after compression."""
        return self.num_values(plans) * self.budget.bytes_per_value_up

    def bytes_down(self, plans: Plans) -> float:
        """Bytes of the planned groups' tensors, had the client none of them yet."""
        return sum(
            _sent_values(spec, plans[spec.name]) for spec in self.groups if spec.name in plans
        ) * (self.budget.bytes_per_value_down)

    def flops_per_token(self, plans: Plans) -> float:
        """Forward pass of the whole model, backward pass as deep as the plan needs it."""
        deepest = self.deepest(plans)
        total = 0.0
        for index, spec in enumerate(self.groups):
            cost, plan = group_cost(spec), plans.get(spec.name)
            total += cost.forward
            if deepest is not None and index > deepest:
                total += cost.activation_gradient
            if isinstance(plan, LowRank):
                total += 3.0 * lora_flops(spec, plan.rank)
            elif plan is not None:
                total += cost.weight_gradient
        return total

    def flops_below(self, plans: Plans) -> float:
        """Of ``flops_per_token``, what goes into the blocks below all trained groups."""
        deepest = self.deepest(plans)
        if deepest is None:
            return 0.0
        block = self.groups[deepest].block
        lower = self.groups[:deepest]
        return sum(group_cost(g).forward for g in lower if block is None or g.block != block)

    def flops_per_step(self, plans: Plans) -> float:
        """FLOPs of one local step."""
        tokens = self.budget.batch_size * self.tokens_per_example
        kept = (1.0 - self.met) * self.flops_below(plans)
        return tokens * (self.flops_per_token(plans) - kept)

    def training_bytes(self, plans: Plans) -> float:
        """Memory of gradients, optimizer and the activations kept for the backward pass."""
        return self.adapter_bytes(plans) + self._activation_bytes(plans)

    def adapter_bytes(self, plans: Plans) -> float:
        """Memory of the trained values' gradients and moments."""
        return self.num_values(plans) * FLOAT_BYTES * _TRAINING_COPIES

    def message_bytes(self, plans: Plans) -> float:
        """What a message takes besides its tensors' values, about."""
        return _HEADER_BYTES + _HEADER_BYTES_PER_GROUP * len(plans)

    def deepest(self, plans: Plans) -> int | None:
        """Index of the trained group nearest to the input, None if nothing is trained."""
        return next((i for i, spec in enumerate(self.groups) if spec.name in plans), None)

    def _activation_bytes(self, plans: Plans) -> float:
        """Inputs of the linear modules from the deepest trained group up, and their like."""
        deepest = self.deepest(plans)
        if deepest is None:
            return 0.0
        tokens = self.budget.batch_size * self.tokens_per_example
        widths = sum(spec.linear[1] for spec in self.groups[deepest:] if spec.linear)
        return tokens * widths * FLOAT_BYTES * (1 + _OTHER_ACTIVATIONS)

    def kept_bytes(self, plans: Plans, client: ClientProfile) -> float:
        """Activations one of the client's longest examples keeps for its backward pass.

        As the client measured them, less what lies below the deepest trained group.
        """
        longest = client.longest_example or self.tokens_per_example
        one = replace(self.budget, batch_size=1)
        costs = replace(self, budget=one, tokens_per_example=longest)
        if client.activation_bytes is None:
            return costs._activation_bytes(plans)
        every = {spec.name: Dense() for spec in self.groups}
        share = costs._activation_bytes(plans) / max(costs._activation_bytes(every), 1.0)
        return client.activation_bytes * share

    def compute_seconds(self, client: ClientProfile, plans: Plans) -> float | None:
        """Seconds of the round's local steps, None until the client's speed is known."""
        if client.flops_per_second is None:
            return None
        return self.budget.steps * self.flops_per_step(plans) / client.flops_per_second

    def round_seconds(self, client: ClientProfile, plans: Plans) -> float | None:
        """Seconds of an exchange, all told; None until speed and link are known."""
        compute = self.compute_seconds(client, plans)
        up, down = client.uplink_bytes_per_second, client.downlink_bytes_per_second
        if compute is None or up is None or down is None:
            return None
        header = self.message_bytes(plans)
        transfer = self.transfer_seconds(client, plans) + header / up + header / down
        return client.exchange_seconds + transfer + compute

    def transfer_seconds(self, client: ClientProfile, plans: Plans) -> float:
        """Seconds for the tensors' values alone, of a client whose rates are known."""
        up, down = client.uplink_bytes_per_second, client.downlink_bytes_per_second
        if up is None or down is None:
            raise ValueError(f"the link of {client.client_id} has not been measured")
        return self.bytes_down(plans) / down + self.bytes_up(plans) / up


def _sent_values(spec: GroupSpec, plan: GroupPlan) -> int:
    """A frozen factor is sent too."""
    if isinstance(plan, LowRank):
        return plan.rank * sum(_linear(spec))
    return num_values(spec, plan)


def _linear(spec: GroupSpec) -> tuple[int, int]:
    if spec.linear is None:
        raise ValueError(f"group {spec.name!r} is {spec.kind}, LoRA needs a linear one")
    return spec.linear
