"""Few numbers that a loss is smooth in, learnt from sums: a quadratic model and its least point.

What a client sends of its p frozen pairs are sums over examples x, each for the w it stands for,
with respect to factors f of value 1 on every pair's share of the model: Σwℓ, Σw, Σw ∇ℓ and Σw F,
with F (p, p) the Fisher information.  Per group that is ``(SUMS + p, pairs)``: a column for each of
its pairs under Σwℓ, Σw, its entry of Σw ∇ℓ and its column of Σw F.  Pairs are ordered by the name
of their group and then by index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strategies.types import Evidence, Statistic

CURVATURE: Final[Statistic] = "pair-curvature"
SUMS: Final = 3
"""Rows above the matrix."""
LEAST, MOST = 0.01, 2.0
"""Between these a coefficient stays: at 0 a factor on it would say nothing of it any more."""
_HARDER: Final = 10.0

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Look:
    """The mean loss () at ``coefficients`` (p,), its gradient (p,) and curvature (p, p) in them."""

    coefficients: Vector
    loss: Vector
    gradient: Vector
    curvature: Vector


def look_of(evidence: Evidence, coefficients: Vector) -> Look | None:
    """What all clients found together; None where nobody looked at anything."""
    answers = list[Vector]()
    for client in sorted(evidence):
        found = evidence[client]
        keys = sorted(key for key in found if key.part == CURVATURE)
        if keys:
            answers.append(np.hstack([found[key].astype(np.float64) for key in keys]))
    if not answers:
        return None
    loss, weight, gradient, *curvature = np.sum(answers, axis=0)
    if not (weight > 0).all():
        return None
    return Look(
        coefficients=coefficients,
        loss=np.array(loss[0] / weight[0]),
        gradient=gradient / weight / coefficients,
        curvature=np.array(curvature) / weight / np.outer(coefficients, coefficients),
    )


def least(look: Look, damping: float) -> Vector:
    """A damped Newton step's end c − (H + εI)⁻¹ g (p,), each entry kept between LEAST and MOST.

    ε is ``damping`` times tr(H)/p.  Where nothing curves, c itself.
    """
    ridge = damping * float(np.trace(look.curvature)) / len(look.curvature)
    if ridge <= 0:
        return look.coefficients
    damped = look.curvature + ridge * np.eye(len(look.curvature))
    step = np.linalg.solve(damped, look.gradient)
    return np.asarray(np.clip(look.coefficients - step, LEAST, MOST))


@dataclass(frozen=True, slots=True)
class Search:
    """The best coefficients looked at so far, if any, those to be looked at next, how often since.

    ``trial`` (p,); ``damping`` () of the next step.
    """

    trial: Vector
    damping: Vector
    looks: Vector
    best: Look | None = None

    @classmethod
    def starting(cls, coefficients: Vector, damping: float) -> Search:
        """Before the first look."""
        return cls(trial=coefficients, damping=np.array(damping), looks=np.array(0.0))

    def after(self, found: Look | None) -> Search:
        """Step on from a look that is better than the best so far, else more carefully from that.

        A look at nothing is none that is better.
        """
        best, damping = self.best, self.damping
        if found and (best is None or found.loss < best.loss):
            best = found
        else:
            damping = damping * _HARDER
        trial = least(best, float(damping)) if best else self.trial
        return Search(trial=trial, damping=damping, looks=self.looks + 1, best=best)

    def ended(self) -> Vector:
        """The coefficients with the least loss measured; where it started if there was no look."""
        return self.best.coefficients if self.best else self.trial
