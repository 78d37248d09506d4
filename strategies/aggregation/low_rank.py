"""What clients made of low-rank groups, read off their contributions; shared by the aggregators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from strategies.aggregation.mean import WeightedMean
from strategies.errors import ShapeMismatchError, StrategyError
from strategies.lora import Factors, factors_of, is_factor, keys_of
from strategies.protocols import Contribution
from strategies.types import Array, GroupName, ParamKey, Tensors


class Trained(NamedTuple):
    """One client's part in one low-rank group.

    ``sent`` are the server's first r components, ``delta`` what training added to them, zero for a
    factor that was not trained.
    """

    sent: Factors
    delta: Factors
    weight: float

    @property
    def rank(self) -> int:
        """The client's rank r."""
        return self.sent.rank

    @property
    def factors(self) -> Factors:
        """What the client holds after training, in float64."""
        return Factors(
            np.add(self.sent.a, self.delta.a, dtype=np.float64),
            np.add(self.sent.b, self.delta.b, dtype=np.float64),
        )


class Running(Protocol):
    """What an aggregator accumulates of one low-rank group."""

    def add(self, client: Trained) -> None:
        """Fold in one client."""
        ...


R = TypeVar("R", bound=Running)


def split(contribution: Contribution, current: Tensors) -> tuple[dict[GroupName, Trained], Tensors]:
    """The groups trained with LoRA, in a fixed order, and the deltas of all other tensors.

    A group the client has no weight in is left out.
    Raises: ShapeMismatchError if factors do not fit the server's, StrategyError if it has none.
    """
    rest = {key: value for key, value in contribution.delta.items() if not is_factor(key)}
    groups = sorted({key.group for key in contribution.delta if is_factor(key)})
    weights = {group: float(contribution.weight[group]) for group in groups}
    trained = {
        group: _trained(contribution, group, server_factors(current, group), weights[group])
        for group in groups
        if weights[group] > 0
    }
    return trained, rest


def fold(
    current: Tensors, contributions: Iterable[Contribution], start: Callable[[Factors], R]
) -> tuple[dict[GroupName, R], dict[ParamKey, Array]]:
    """Run through the contributions once: low-rank groups into ``start``'s, the rest averaged.

    Returns what was accumulated per trained group, and the new values of the other tensors.
    """
    running, mean = dict[GroupName, R](), WeightedMean()
    for contribution in contributions:
        low_rank, rest = split(contribution, current)
        mean.add(replace(contribution, delta=rest))
        for group, client in low_rank.items():
            if group not in running:
                running[group] = start(server_factors(current, group))
            running[group].add(client)
    return running, mean.apply_to(current)


def server_factors(current: Tensors, group: GroupName) -> Factors:
    """The server's factors of a group that was trained with LoRA."""
    factors = factors_of(current, group)
    if factors is None:
        raise StrategyError(
            f"group {group} was trained with LoRA but the state holds no factors for it; "
            "expected lora_A and lora_B"
        )
    return factors


def pad(factors: Factors, rank: int) -> Factors:
    """Components of zeros up to ``rank``; the product is the same and ``prefix`` undoes it."""
    missing = rank - factors.rank
    return Factors(
        np.pad(factors.a, ((0, missing), (0, 0))), np.pad(factors.b, ((0, 0), (0, missing)))
    )


def factor_mean(current: Tensors, contributions: Iterable[Contribution]) -> dict[ParamKey, Array]:
    """All tensors after the weighted mean of the deltas, A and B apart.

    Deltas of low rank are padded with zeros: a client that does not have a component keeps the
    server's value for its share.  Where the other factor is common to all, this is the mean of the
    products whatever the ranks.
    """
    mean = WeightedMean()
    for contribution in contributions:
        mean.add(padded(contribution, current))
    return dict(current) | mean.apply_to(current)


def padded(contribution: Contribution, current: Tensors) -> Contribution:
    """The contribution with the deltas of its factors padded to the server's rank."""
    trained, delta = split(contribution, current)
    moved = dict(delta)
    for group, client in trained.items():
        factors = pad(client.delta, server_factors(current, group).rank)
        moved |= {
            key: value
            for key, value in zip(keys_of(group), factors, strict=True)
            if key in contribution.delta
        }
    return replace(contribution, delta=moved)


def refuse(contribution: Contribution, part: str, reason: str) -> None:
    """Check that the client did not send a factor that is not for the server to merge.

    Raises: StrategyError naming client and tensor.
    """
    for key in contribution.delta:
        if key.part == part:
            raise StrategyError(f"client {contribution.client_id} sent {key}, but {reason}")


def _trained(
    contribution: Contribution, group: GroupName, server: Factors, weight: float
) -> Trained:
    key_a, key_b = keys_of(group)
    a, b = contribution.delta.get(key_a), contribution.delta.get(key_b)
    rank = a.shape[0] if a is not None else b.shape[1] if b is not None else 0
    sent = server.prefix(rank)
    delta = Factors(
        np.zeros_like(sent.a) if a is None else a, np.zeros_like(sent.b) if b is None else b
    )
    for key, mine, theirs in zip((key_a, key_b), delta, sent, strict=True):
        if mine.shape != theirs.shape:
            raise ShapeMismatchError(
                f"client {contribution.client_id} sent {key} with shape {mine.shape}, expected "
                f"{theirs.shape}: both factors of one rank, at most the server's {server.rank}"
            )
    return Trained(sent, delta, weight)
