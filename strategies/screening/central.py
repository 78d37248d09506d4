"""Krum's score of every client, and what follows from it; shared by ``krum`` and ``multi-krum``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strategies.lora import Matrix
from strategies.protocols import Contribution, Finding, Screened
from strategies.screening.changes import Distances, changes_of
from strategies.screening.weights import capped
from strategies.types import State, Tensors

_LEAST = 3  # clients with which there is a nearest neighbour to speak of


@dataclass(frozen=True, slots=True, kw_only=True)
class Central:
    """The clients nearest to their neighbours, of a round in which a share is hostile.

    ``hostile`` is that share; ``outlier`` is how many times the median score of the n − f best a
    score must be to count as the client's fault.  ``memory`` is the weight of the rounds before in
    what clients are ranked by: their scores relative to each round's median, running means of which
    are the state, by client.
    """

    hostile: float
    outlier: float
    weight_limit: float
    memory: float

    def suffices(self, count: int) -> bool:
        """Blanchard et al.'s condition n ≥ 2f + 3, f = ⌈hostile · n⌉."""
        return count >= 2 * self.expected(count) + 3

    def expected(self, count: int) -> int:
        """Hostile clients among ``count``, rounded up."""
        return math.ceil(round(self.hostile * count, 9))

    def screen(
        self,
        state: State,
        current: Tensors,
        contributions: Sequence[Contribution],
        scale: float,
        *,
        most: int | None = None,
    ) -> Screened:
        """The n − f best, or the ``most`` best of them.

        With fewer than 2f + 3 clients f is the most that these allow; with fewer than 3 all count.
        Either is noted.
        """
        count, hostile, notes = len(contributions), self.expected(len(contributions)), tuple[str]()
        if not self.suffices(count):
            wanted, hostile = hostile, max((count - _LEAST) // 2, 0)
            notes = (_shortfall(count, wanted, hostile),) if count else ()
        if count < _LEAST:
            chosen: Sequence[int] = range(count)
            findings = [Finding(client_id=c.client_id, action="kept") for c in contributions]
        else:
            scores = self._scores(current, contributions, scale, hostile)
            state = self._remembered(state, contributions, scores)
            order = sorted(range(count), key=lambda i: _place(state, contributions[i].client_id))
            best = order[: count - hostile]
            limit = self.outlier * float(np.median([scores[i] for i in best]))
            chosen = best[:most]
            findings = [
                _finding(c, scores[i], limit, chosen=i in chosen)
                for i, c in enumerate(contributions)
            ]
        kept = [contributions[i] for i in sorted(chosen)]
        return Screened(
            contributions=capped(kept, self.weight_limit),
            findings=tuple(findings),
            state=state,
            notes=notes,
        )

    def _remembered(
        self, state: State, contributions: Sequence[Contribution], scores: Sequence[float]
    ) -> State:
        middle, known = float(np.median(scores)) or 1.0, dict(state)
        for contribution, score in zip(contributions, scores, strict=True):
            client, relative = contribution.client_id, np.array(score / middle)
            before = known.get(client, relative)
            known[client] = np.asarray(self.memory * before + (1 - self.memory) * relative)
        return known

    def _scores(
        self, current: Tensors, contributions: Sequence[Contribution], scale: float, hostile: int
    ) -> list[float]:
        changes = [changes_of(contribution, current, scale) for contribution in contributions]
        return [float(score) for score in scores_of(Distances.between(changes).squared, hostile)]


def scores_of(squared: Matrix, hostile: int) -> Matrix:
    """Σ of the squared distances ``(n, n)`` to the n − f − 2 nearest others, at least one; (n,)."""
    count = len(squared)
    nearest = max(count - hostile - 2, 1)
    others = squared + np.diag(np.full(count, np.inf))
    return np.asarray(np.sort(others, axis=1)[:, :nearest].sum(axis=1))


def _place(state: State, client: str) -> tuple[float, str]:
    return float(state[client]), client


def _shortfall(count: int, wanted: int, used: int) -> str:
    what = f"f = {used} instead" if count >= _LEAST else "all count"
    return f"{count} updates are fewer than 2f + 3 for f = {wanted} hostile ones: {what}"


def _finding(contribution: Contribution, score: float, limit: float, *, chosen: bool) -> Finding:
    numbers = {"screening_share": float(chosen), "screening_score": score, "screening_limit": limit}
    client = contribution.client_id
    if chosen:
        return Finding(client_id=client, action="kept", numbers=numbers)
    if score > limit:
        why = f"score {score:.3g} above {limit:.3g}, the most for an honest one"
        return Finding(client_id=client, action="refused", why=why, numbers=numbers)
    why = f"score {score:.3g}, others lie nearer to their neighbours"
    return Finding(client_id=client, action="left-out", why=why, numbers=numbers)
