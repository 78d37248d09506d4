"""Freeze what a task has learnt beside the base, and start the next from fresh factors."""

from __future__ import annotations

from strategies.aggregation.merged import grown
from strategies.lora import drawn_factors, factors_of, keys_of
from strategies.protocols import MergeView
from strategies.rng import seed_for
from strategies.types import Array, ParamKey, Tensors


def folded(view: MergeView, tensors: Tensors) -> dict[ParamKey, Array]:
    """The same model with every group's factors as one more merged pair, A drawn anew and B zero.

    The pair is frozen as it is, so that it can still be told from those of other tasks; once the
    ranks of all pairs exceed what a matrix of that shape can have, they become one.  A group whose
    B is zero has learnt nothing and stays.
    """
    after, seed = dict(tensors), seed_for(view.seed, "folded", view.task_index)
    for spec in view.groups:
        factors = factors_of(after, spec.name)
        if factors is None or not factors.b.any():
            continue
        after = grown(after, spec.name, factors)
        after |= zip(keys_of(spec.name), drawn_factors(seed, spec, factors.rank), strict=True)
    return after
