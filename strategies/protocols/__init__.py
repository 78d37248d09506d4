"""The questions a strategy answers.  A strategy is a frozen dataclass: fields are hyper-parameters.

Strategies do no I/O, read no clock and keep no state of their own: what they must remember goes in
and comes out as ``State``, so that it is checkpointed with the run.

Most strategies answer one question.  One that needs more says so by having the method for it:
``Probing`` wants evidence before it decides, ``Adaptive`` learns from what came of its decisions,
``Initializing`` sets the starting point, ``Personalizing`` leaves parts with the clients,
``Alternating`` trains one factor at a time, ``AfterRound`` edits what a round gave,
``TaskStart`` starts tasks elsewhere, ``Tallying`` sums up how clients moved, ``Refining`` looks at
its own model and betters it, ``Outvoting`` needs a round of some size.
"""

from __future__ import annotations

from strategies.protocols.aggregating import (
    Aggregated,
    Aggregator,
    Alternating,
    Capabilities,
    Contribution,
    HeadShape,
    HeadSolver,
)
from strategies.protocols.compressing import (
    Compressor,
    Encoded,
)
from strategies.protocols.deciding import (
    Adaptive,
    Initializing,
    LayerSelector,
    Personalizing,
    Probing,
    Question,
    RankAllocator,
)
from strategies.protocols.merging import (
    AfterRound,
    Merged,
    Merger,
    MergeView,
    Moves,
    Refining,
    Tally,
    Tallying,
    TaskStart,
)
from strategies.protocols.replaying import (
    ExampleIds,
    Offer,
    ReplayMemory,
    ReplayPolicy,
    ReplayRounds,
    ReplayView,
    Retrieving,
    RoundPlace,
    Weighing,
)
from strategies.protocols.screening import (
    Finding,
    Outvoting,
    Screened,
    Screener,
)

__all__ = [
    "Adaptive",
    "AfterRound",
    "Aggregated",
    "Aggregator",
    "Alternating",
    "Capabilities",
    "Compressor",
    "Contribution",
    "Encoded",
    "ExampleIds",
    "Finding",
    "HeadShape",
    "HeadSolver",
    "Initializing",
    "LayerSelector",
    "MergeView",
    "Merged",
    "Merger",
    "Moves",
    "Offer",
    "Outvoting",
    "Personalizing",
    "Probing",
    "Question",
    "RankAllocator",
    "Refining",
    "ReplayMemory",
    "ReplayPolicy",
    "ReplayRounds",
    "ReplayView",
    "Retrieving",
    "RoundPlace",
    "Screened",
    "Screener",
    "Tally",
    "Tallying",
    "TaskStart",
    "Weighing",
]
