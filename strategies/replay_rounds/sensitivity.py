"""Which groups of tensors forget: those that move most when the task changes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from strategies.types import GroupName


def sensitivity(
    first: Mapping[GroupName, float], later: Mapping[GroupName, float]
) -> dict[GroupName, float]:
    """S = mean drift in the first round of a task / mean drift in its later rounds.

    Drift is the root mean square by which a round of local training moves a group's values.  The
    ratio does not depend on learning rates.  A group that never moved has S = 0; where tasks have
    one round only, S is the drift itself.
    Source: FPF, Zhao et al. 2023, arXiv 2304.04158, §3; departs: rounds in the place of epochs,
    root mean square in the place of the mean absolute value.
    """
    if not any(later.values()):
        return dict(first)
    return {
        group: drift / later[group] if later.get(group, 0.0) > 0 else 0.0 if not drift else math.inf
        for group, drift in first.items()
    }


def most_sensitive(values: Mapping[GroupName, float], share: float) -> tuple[GroupName, ...]:
    """The ``share`` of groups with the largest values, at least one of those above 0."""
    moved = sorted((group for group in values if values[group] > 0), key=lambda g: (-values[g], g))
    return tuple(moved[: max(1, round(share * len(values)))])
