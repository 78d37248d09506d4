"""Which groups of tensors forget: those that move furthest when the task changes."""

from __future__ import annotations

from collections.abc import Mapping

from strategies.types import GroupName


def most_sensitive(values: Mapping[GroupName, float], share: float) -> tuple[GroupName, ...]:
    """The ``share`` of groups with the largest sensitivity, at least one of those above 0.

    The sensitivity of a group is the mean, over tasks, of the drift in the first round of a task:
    the root mean square by which local training moves its values.  A group that never moved has 0,
    and a common factor of all learning rates changes nothing.
    Source: FPF, Zhao et al. 2023, arXiv 2304.04158, §3; departs: rounds in the place of epochs,
    root mean square in the place of the mean absolute value; not relative to later rounds, since
    with Adam every group moves by about its learning rate at any time, and the ratio puts the head,
    which forgets most, last (docs/results.md).
    """
    moved = sorted((group for group in values if values[group] > 0), key=lambda g: (-values[g], g))
    return tuple(moved[: max(1, round(share * len(values)))])
