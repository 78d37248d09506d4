"""Which contributions of a round are believed, before any aggregator sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from strategies.protocols.aggregating import Contribution
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was made of one client's contribution.

    ``scaled`` ones count, smaller than they came; ``left-out`` ones do not count, though nothing is
    wrong with them; ``refused`` ones are so far from the others that they are the client's fault.
    ``why`` gives the number that decided and its limit, empty for ``kept``; ``numbers`` go into the
    metrics of the client's reply.
    """

    client_id: str
    action: Literal["kept", "scaled", "left-out", "refused"]
    why: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """What the aggregator gets, in the order it came, and one finding per client in that order.

    ``state`` is what to remember; ``notes`` say where the screening could not do what was asked.
    """

    contributions: tuple[Contribution, ...]
    findings: tuple[Finding, ...]
    state: State
    notes: tuple[str, ...] = ()


@runtime_checkable
class Screener(Protocol):
    """The contributions of a round → those kept, possibly smaller.

    It sees every update by itself and all of a round at once.
    """

    def screen(
        self,
        state: State,
        current: Tensors,
        contributions: Sequence[Contribution],
        scale: float,
    ) -> Screened:
        """Judge ``contributions``, which were trained from ``current``, all in one round."""
        ...


@runtime_checkable
class Outvoting(Protocol):
    """A screener that needs so many clients that the honest ones outvote the others."""

    def suffices(self, count: int) -> bool:
        """Whether a round of ``count`` contributions is enough for it."""
        ...
