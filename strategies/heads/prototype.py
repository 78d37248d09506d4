"""Nearest class mean: a class's row is the mean feature of all its examples, everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from strategies.errors import WireError
from strategies.heads.moments import class_counts
from strategies.protocols import HeadShape
from strategies.types import HEAD, Array, ParamKey, State, Statistic, Tensors


@dataclass(frozen=True, slots=True)
class Prototype:
    """Row c is Σ x / n over the features x of all examples of c; cosine similarity decides.

    Clients send sums and counts of their new examples once; old rows never move while the encoder
    stands still.  With nothing trained this is the trivial baseline.  Needs ``model.head =
    "cosine"``.
    Source: nearest class mean classifier, Mensink et al. 2013, with cosine distance; iCaRL, Rebuffi
    et al. 2017, arXiv 1611.07725, where memories stand in for examples.
    """

    head: ClassVar[str] = "cosine"
    statistics: ClassVar[tuple[Statistic, ...]] = ("class-sums", "class-counts")
    precision: ClassVar[Literal["float32"]] = "float32"

    def absorb(self, state: State, evidence: Tensors, shape: HeadShape) -> State:
        counts = class_counts(evidence, shape)[0]
        sums = evidence[ParamKey(HEAD, "class-sums")].astype(np.float64)
        held = np.flatnonzero(counts)
        if sums.shape != (len(held), shape.width):
            raise WireError(
                f"class sums {sums.shape}, expected ({len(held)}, {shape.width}), as many rows as "
                "classes are counted"
            )
        total = np.array(state.get("sums", np.zeros((shape.num_classes, shape.width))))
        total[held] += sums
        return {"sums": total, "counts": state.get("counts", np.zeros(len(counts))) + counts}

    def solve(self, state: State) -> tuple[Array, State]:
        counts = np.maximum(state["counts"], 1e-12)
        return (state["sums"] / counts[:, None]).astype(np.float32), state
