"""Share A, leave B with each client: one subspace for all, one model for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from strategies.aggregation.low_rank import padded, refuse, server_factors, split
from strategies.aggregation.mean import WeightedMean
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import LORA_B, ClientId, GroupName, RoundView, State, Tensors


@dataclass(frozen=True, slots=True)
class ShareA:
    """Ā = Σ pₖ Aₖ; client k goes on with (Ā, its own Bₖ), a new client with the server's B.

    A row of A is the mean over the clients whose rank reaches it.  The server's B never moves.
    Raises: StrategyError if a client sends a B.
    Source: FedSA-LoRA, arXiv 2410.01463; departs: the classifier is shared, and ranks may differ.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=False, needs_equal_rank=False, needs_individual_updates=False, keeps_gauge=True
    )

    def kept(self, view: RoundView) -> Mapping[ClientId, Mapping[GroupName, tuple[str, ...]]]:
        """Every client's own B in every linear group."""
        own = {group.name: (LORA_B,) for group in view.groups if group.linear is not None}
        return {client.client_id: own for client in view.clients}

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        mean = WeightedMean()
        for contribution in contributions:
            refuse(contribution, LORA_B, "fedsa leaves B with the clients; plan it as kept")
            mean.add(_weighted_by_row(contribution, current))
        tensors = dict(current) | mean.apply_to(current)
        return Aggregated(tensors=tensors, state=state, truncation={})


def _weighted_by_row(contribution: Contribution, current: Tensors) -> Contribution:
    """A padded to the server's rank; rows the client does not have weigh nothing."""
    weight = dict(contribution.weight)
    for group, client in split(contribution, current)[0].items():
        rows = np.arange(server_factors(current, group).rank)
        weight[group] = np.where(rows < client.rank, client.weight, 0.0)
    return replace(padded(contribution, current), weight=weight)
