"""What a client is sent: its slice of the state, less what it has, compressed for the way down."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from strategies.catalog import COMPRESSORS, build
from strategies.compression.chain import compress
from strategies.lora import factors_of, is_factor, keys_of
from strategies.types import (
    LORA_A,
    Array,
    Assignment,
    ClientId,
    GlobalState,
    GroupName,
    GroupPlan,
    Held,
    Holding,
    LowRank,
    ParamKey,
    Reply,
    StrategyChoice,
    Tensors,
    Update,
)

Kept = Mapping[GroupName, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """``tensors`` as they travel, ``held`` what the client has already.

    ``holding`` is what the client has once it has answered.
    """

    tensors: Tensors
    held: Held
    holding: Holding


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Makes parcels of one state for all clients of a step."""

    state: GlobalState
    downlink: tuple[StrategyChoice, ...]

    def parcel(
        self,
        client: ClientId,
        plans: Mapping[GroupName, GroupPlan],
        kept: Kept,
        left_out: frozenset[GroupName] = frozenset(),
    ) -> Parcel:
        """The parcel of one client.

        Groups of ``plans`` are cut to their rank, others are part of the model and sent whole, but
        for those ``left_out`` and adapters that add nothing yet.
        """
        before = self.state.holdings.get(client, Holding())
        model, own = _slice(self.state.tensors, plans, kept, left_out), _own(kept)
        ranks = {
            key.text: _rank(key, value)
            for key, value in model.items()
            if key.text not in before.own
        }
        held = {name: rank for name, rank in ranks.items() if self._has(before, name, rank)}
        new = {k: v for k, v in model.items() if k.text in ranks and k.text not in held}
        chain = [build(COMPRESSORS, choice, key="downlink") for choice in self.downlink]
        return Parcel(
            tensors=compress(new, chain),
            held=Held(step=before.step, ranks=held),
            holding=Holding(step=self.state.step_index, ranks=ranks, own=own),
        )

    def carried_bytes(
        self, client: ClientId, chosen: Collection[GroupName], kept: Kept, bytes_per_value: float
    ) -> float:
        """Bytes of what the client needs besides the ``chosen`` groups, and does not have."""
        before = self.state.holdings.get(client, Holding())
        model = _slice(self.state.tensors, {}, kept, frozenset(chosen))
        return bytes_per_value * sum(
            value.size
            for key, value in model.items()
            if key.text not in before.own and not self._has(before, key.text, _rank(key, value))
        )

    def _has(self, before: Holding, name: str, rank: int) -> bool:
        since = self.state.changed.get(name)
        if since is None:  # as it was drawn from the run's seed, which the client can do too
            return is_factor(ParamKey.parse(name))
        return before.step >= since and before.ranks.get(name, -1) >= rank


def _rank(key: ParamKey, value: Array) -> int:
    """Components of a factor, 0 of what is none."""
    return int(value.shape[0 if key.part == LORA_A else 1]) if is_factor(key) else 0


def _slice(
    tensors: Tensors,
    plans: Mapping[GroupName, GroupPlan],
    kept: Kept,
    left_out: frozenset[GroupName],
) -> dict[ParamKey, Array]:
    sent = {
        key: value
        for key, value in tensors.items()
        if not is_factor(key) and key.group not in left_out
    }
    for group in dict.fromkeys(key.group for key in tensors if is_factor(key)):
        factors, plan = factors_of(tensors, group), plans.get(group)
        if factors is None or group in left_out:
            continue
        if isinstance(plan, LowRank):
            factors = factors.prefix(plan.rank)
        elif group not in kept and not factors.b.any():
            continue
        sent |= zip(keys_of(group), factors, strict=True)
    return sent


def _own(kept: Kept) -> tuple[str, ...]:
    return tuple(ParamKey(group, part).text for group in sorted(kept) for part in kept[group])


def changes(before: Tensors, after: Tensors, step_index: int) -> dict[str, int]:
    """Tensors whose value is another than before, each with the step it has it from."""
    return {
        key.text: step_index
        for key, value in after.items()
        if key not in before
        or (before[key] is not value and not np.array_equal(before[key], value))
    }


@dataclass(slots=True)
class Receipts:
    """Follows what clients have, reply by reply."""

    holdings: dict[ClientId, Holding] = field(default_factory=dict)

    def note(self, assignment: Assignment, holding: Holding, reply: Reply) -> None:
        """A client that answered has what it was sent; one that lost something has nothing."""
        client = assignment.client_id
        if isinstance(reply.result, Update):
            self.holdings[client] = holding
        elif reply.result.reason == "missing-tensors":
            self.holdings.pop(client, None)

    def of_use(self, changed: Mapping[str, int]) -> dict[ClientId, Holding]:
        """The holdings less what is out of date; of clients that have anything left."""
        useful = dict[ClientId, Holding]()
        for client, holding in self.holdings.items():
            ranks = {
                n: r for n, r in holding.ranks.items() if 0 < changed.get(n, 0) <= holding.step
            }
            if ranks or holding.own:
                useful[client] = Holding(step=holding.step, ranks=ranks, own=holding.own)
        return useful
