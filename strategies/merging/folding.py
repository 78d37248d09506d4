"""Freeze what a task has learnt beside the base, and start the next from fresh factors."""

from __future__ import annotations

from strategies.aggregation.merged import grown
from strategies.lora import Factors, drawn_factors, factors_of, is_factor, keys_of
from strategies.protocols import MergeView
from strategies.rng import seed_for
from strategies.types import Array, GroupName, ParamKey, Tensors


def folded(view: MergeView, tensors: Tensors) -> dict[ParamKey, Array]:
    """The same model with every group's factors as one more merged pair, A drawn anew and B zero.

    The pair is frozen as it is, so that it can still be told from those of other tasks; once the
    ranks of all pairs exceed what a matrix of that shape can have, they become one.  A group whose
    B is zero has learnt nothing and stays.
    """
    after = restarted(view, tensors)
    for group, factors in learnt_pairs(tensors).items():
        after = grown(after, group, factors)
    return after


def restarted(view: MergeView, tensors: Tensors) -> dict[ParamKey, Array]:
    """The tensors with A drawn anew and B zero in every group whose B is not."""
    after, seed = dict(tensors), seed_for(view.seed, "folded", view.task_index)
    specs = {spec.name: spec for spec in view.groups}
    for group, factors in learnt_pairs(tensors).items():
        fresh = drawn_factors(seed, specs[group], factors.rank)
        after |= zip(keys_of(group), fresh, strict=True)
    return after


def learnt_pairs(tensors: Tensors) -> dict[GroupName, Factors]:
    """The factors of every group whose B is not zero."""
    groups = dict.fromkeys(key.group for key in tensors if is_factor(key))
    pairs = {group: factors_of(tensors, group) for group in groups}
    return {group: pair for group, pair in pairs.items() if pair is not None and pair.b.any()}
