"""No client moves a group of tensors farther than most do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final

import numpy as np
from annotated_types import Ge, Gt

from strategies.protocols import Contribution, Finding, Screened
from strategies.screening.changes import Change, Changes, LowRankChange, changes_of
from strategies.screening.weights import capped
from strategies.types import GroupName, State, Tensors

_HALVINGS: Final = 60  # of [0, 1]; more than a double has digits


@dataclass(frozen=True, slots=True)
class NormClipping:
    """Scales each group of an update until its change of the model is at most a bound.

    The bound is ``bound``, of ‖D‖ per group, or ``multiple`` times a median: over the round's
    clients or, with ``past`` > 0, over the medians of the last so many rounds before it, which a
    round with a hostile majority cannot raise at once.  D is the change of the product (see
    ``changes``) of a low-rank group, the move of a dense one.  Groups are clipped one by one, for a
    head's new rows are longer than all else and would leave adapters without a bound.

    Of a low-rank group both deltas are scaled by one number s, the largest at which ‖D(s)‖ meets
    the bound.  The deltas keep their direction; D keeps its own up to s² dB dA, for the change
    itself, scaled, is no pair of factors of rank r beside the sent ones.  No weight counts more
    than ``weight_limit`` times the median one.

    It bounds what one client can do, and refuses nobody: updates that point the wrong way still
    count against the others.
    Source: Sun et al. 2019, arXiv:1911.07963, §5 (norm thresholding); per group as in McMahan
    et al. 2018, arXiv:1710.06963, §3; departs: medians in the place of a constant, products of
    factors, weights bounded too.
    """

    bound: Annotated[float, Gt(0)] | None = None  # of ‖D‖ per group; None: by medians
    multiple: Annotated[float, Gt(0)] = 1.0  # of the median norm
    past: Annotated[int, Ge(0)] = 0  # rounds whose medians count
    weight_limit: Annotated[float, Ge(1)] = 3.0  # times the median weight

    def screen(
        self,
        state: State,
        current: Tensors,
        contributions: Sequence[Contribution],
        scale: float,
    ) -> Screened:
        """Every contribution, with the groups that went too far scaled down."""
        all_changes = [changes_of(c, current, scale) for c in contributions]
        medians = _medians(all_changes)
        bounds = {group: self._bound(state, group, median) for group, median in medians.items()}
        kept, findings = list[Contribution](), list[Finding]()
        for contribution, changes in zip(contributions, all_changes, strict=True):
            shares = {g: share_within(change, bounds[g]) for g, change in changes.items()}
            kept.append(_scaled(contribution, shares))
            findings.append(_finding(contribution, changes, shares, bounds))
        return Screened(
            contributions=capped(kept, self.weight_limit),
            findings=tuple(findings),
            state=self._remembered(state, medians),
        )

    def _bound(self, state: State, group: GroupName, median: float) -> float:
        if self.bound is not None:
            return self.bound
        known = state.get(group)
        return self.multiple * (median if known is None else float(np.median(known)))

    def _remembered(self, state: State, medians: Mapping[GroupName, float]) -> State:
        """The last ``past`` medians of every group, oldest first."""
        if not self.past or self.bound is not None:
            return state
        before = {group: state.get(group, np.zeros(0)) for group in medians}
        return {**state} | {
            group: np.append(before[group], median)[-self.past :]
            for group, median in medians.items()
            if median > 0
        }


def share_within(change: Change, bound: float) -> float:
    """The factor, at most 1, by which the deltas must be multiplied for ‖D‖ ≤ ``bound``."""
    squared = change.squared()
    if squared <= bound**2:
        return 1.0
    if not isinstance(change, LowRankChange):
        return bound / float(np.sqrt(squared))
    low, high = 0.0, 1.0  # INVARIANT: ‖D(low)‖ ≤ bound < ‖D(high)‖
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if change.squared(middle) <= bound**2:
            low = middle
        else:
            high = middle
    return low


def _medians(all_changes: Sequence[Changes]) -> dict[GroupName, float]:
    norms = dict[GroupName, list[float]]()
    for changes in all_changes:
        for group, change in changes.items():
            norms.setdefault(group, []).append(float(np.sqrt(change.squared())))
    return {group: float(np.median(values)) for group, values in sorted(norms.items())}


def _scaled(contribution: Contribution, shares: Mapping[GroupName, float]) -> Contribution:
    delta = {
        key: value if (share := shares.get(key.group, 1.0)) == 1.0 else _times(share, value)
        for key, value in contribution.delta.items()
    }
    return replace(contribution, delta=delta)


def _times(share: float, value: np.ndarray) -> np.ndarray:
    return (share * value.astype(np.float64)).astype(np.float32)


def _finding(
    contribution: Contribution,
    changes: Changes,
    shares: Mapping[GroupName, float],
    bounds: Mapping[GroupName, float],
) -> Finding:
    """``screening_share`` is the smallest of the client's groups, whose numbers are given."""
    client = contribution.client_id
    worst = min(shares, key=lambda group: (shares[group], group), default=None)
    if worst is None:
        return Finding(client_id=client, action="kept")
    numbers = {"screening_share": shares[worst]}
    if shares[worst] == 1.0:
        return Finding(client_id=client, action="kept", numbers=numbers)
    norm, several = float(np.sqrt(changes[worst].squared())), sum(s < 1 for s in shares.values())
    why = (
        f"{several} groups scaled, most of all {worst} by {shares[worst]:.3g}: "
        f"norm {norm:.3g}, at most {bounds[worst]:.3g}"
    )
    return Finding(
        client_id=client,
        action="scaled",
        why=why,
        numbers={**numbers, "screening_norm": norm, "screening_limit": bounds[worst]},
    )
