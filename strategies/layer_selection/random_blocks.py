"""Other blocks every round, by lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from strategies.layer_selection.blocks import affordable, blocks_of, with_common
from strategies.rng import Rng, rng_for
from strategies.types import ClientProfile, RoundView, Selection


@dataclass(frozen=True, slots=True)
class Random:
    """Every client trains ``blocks`` blocks drawn for it and this round alone, and the head."""

    blocks: Annotated[int, Ge(1)] = 2

    def select(self, view: RoundView, rng: Rng) -> Selection:
        return {
            client.client_id: with_common(view, self._drawn(view, client))
            for client in view.clients
        }

    def _drawn(self, view: RoundView, client: ClientProfile) -> list[int]:
        # Named by client, so that a draw does not depend on who else is in the cohort.
        own = rng_for(
            view.seed, "random-blocks", view.task_index, view.round_index, client.client_id
        )
        order = own.permutation(len(blocks_of(view)))
        return [int(index) for index in order[: affordable(view, client, self.blocks)]]
