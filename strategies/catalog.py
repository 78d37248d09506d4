"""Every algorithm by its published name, and how a run file's choice becomes one.

Adding one is a line here.  The explicit table is greppable, has no import side effects, and a class
with the wrong signature is a type error on its own line.  Client methods live with the clients and
need torch, so their table holds addresses that are resolved on the client.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from strategies.aggregation.coordinate_median import CoordinateMedian
from strategies.aggregation.exact import Exact
from strategies.aggregation.fedavg import FedAvg
from strategies.aggregation.fedex import FedEx
from strategies.aggregation.fedsa import ShareA
from strategies.aggregation.ffa import FreezeA
from strategies.aggregation.flexlora import FlexLora
from strategies.aggregation.flora import Flora
from strategies.aggregation.hetlora import HetLora
from strategies.aggregation.partition import Partition
from strategies.aggregation.rolora import Alternate
from strategies.aggregation.trimmed_mean import TrimmedMean
from strategies.compression.cast import BFloat16, Float16
from strategies.compression.int8 import Int8
from strategies.compression.topk import TopK
from strategies.errors import ConfigError, Fault
from strategies.heads.analytic import Analytic
from strategies.heads.prototype import Prototype
from strategies.heads.trained import Trained
from strategies.layer_selection.all_layers import AllLayers
from strategies.layer_selection.attention_only import AttentionOnly
from strategies.layer_selection.both import Both
from strategies.layer_selection.bottom import Bottom
from strategies.layer_selection.fedselect import FedSelect
from strategies.layer_selection.fisher import Fisher
from strategies.layer_selection.green import Green
from strategies.layer_selection.half import Half
from strategies.layer_selection.random_blocks import Random
from strategies.layer_selection.rgn import RelativeGradient
from strategies.layer_selection.selective import Selective
from strategies.layer_selection.snr import SignalToNoise
from strategies.layer_selection.telly import Telly
from strategies.layer_selection.top import Top
from strategies.merging.atlas import Atlas
from strategies.merging.fot import Fot
from strategies.merging.lines import LiNeS
from strategies.merging.model_stock import ModelStock
from strategies.merging.none import KeepAsTrained
from strategies.merging.olora import OLora
from strategies.merging.task_vectors import TaskVectors
from strategies.merging.wise_ft import WiseFt
from strategies.protocols import (
    Aggregator,
    Compressor,
    HeadSolver,
    LayerSelector,
    Merger,
    RankAllocator,
    ReplayPolicy,
    ReplayRounds,
    Screener,
)
from strategies.rank.adalora import AdaLoRA
from strategies.rank.airllm.policy import AirLLM
from strategies.rank.by_kind import ByKind
from strategies.rank.dense import DenseTuning
from strategies.rank.eva import Eva
from strategies.rank.fixed import Fixed
from strategies.rank.hetlora import HetLoRA
from strategies.rank.spectral import Spectral
from strategies.replay.balanced import Balanced
from strategies.replay.forgetting import Forgetting
from strategies.replay.mir import MaximallyInterfered
from strategies.replay.reservoir import Reservoir
from strategies.replay.ring import Ring
from strategies.replay_rounds.adaptive import Adaptive
from strategies.replay_rounds.fpf import ForgettingPrioritized
from strategies.replay_rounds.k_fpf import RepeatedForgettingPrioritized
from strategies.replay_rounds.none import NoReplayRounds
from strategies.screening.krum import Krum
from strategies.screening.multi_krum import MultiKrum
from strategies.screening.none import NoScreening
from strategies.screening.norm_clipping import NormClipping
from strategies.types import StrategyChoice

LAYER_SELECTORS: Final[dict[str, type[LayerSelector]]] = {
    "all": AllLayers,
    "top": Top,
    "bottom": Bottom,
    "both": Both,
    "random": Random,
    "attention-only": AttentionOnly,
    "telly": Telly,
    "snr": SignalToNoise,
    "rgn": RelativeGradient,
    "fisher": Fisher,
    "selective": Selective,
    "green": Green,
    "half": Half,
    "fedselect": FedSelect,
}
RANK_ALLOCATORS: Final[dict[str, type[RankAllocator]]] = {
    "fixed": Fixed,
    "by-kind": ByKind,
    "hetlora": HetLoRA,
    "adalora": AdaLoRA,
    "eva": Eva,
    "spectral": Spectral,
    "airllm": AirLLM,
    "dense": DenseTuning,
}
REPLAY_POLICIES: Final[dict[str, type[ReplayPolicy]]] = {
    "reservoir": Reservoir,
    "balanced": Balanced,
    "ring": Ring,
    "mir": MaximallyInterfered,
    "forgetting": Forgetting,
}
REPLAY_ROUNDS: Final[dict[str, type[NoReplayRounds] | type[ReplayRounds]]] = {
    "none": NoReplayRounds,
    "fpf": ForgettingPrioritized,
    "k-fpf": RepeatedForgettingPrioritized,
    "adaptive": Adaptive,
}
AGGREGATORS: Final[dict[str, type[Aggregator]]] = {
    "exact": Exact,
    "fedavg": FedAvg,
    "ffa": FreezeA,
    "hetlora": HetLora,
    "flexlora": FlexLora,
    "flora": Flora,
    "fedex": FedEx,
    "fedsa": ShareA,
    "rolora": Alternate,
    "partition": Partition,
    "trimmed-mean": TrimmedMean,
    "coordinate-median": CoordinateMedian,
}
SCREENERS: Final[dict[str, type[NoScreening] | type[Screener]]] = {
    "none": NoScreening,
    "norm-clipping": NormClipping,
    "krum": Krum,
    "multi-krum": MultiKrum,
}
HEADS: Final[dict[str, type[Trained] | type[HeadSolver]]] = {
    "trained": Trained,
    "prototype": Prototype,
    "analytic": Analytic,
}
MERGERS: Final[dict[str, type[Merger]]] = {
    "none": KeepAsTrained,
    "wise-ft": WiseFt,
    "lines": LiNeS,
    "model-stock": ModelStock,
    "olora": OLora,
    "fot": Fot,
    "task-vectors": TaskVectors,
    "atlas": Atlas,
}
COMPRESSORS: Final[dict[str, type[Compressor]]] = {
    "fp16": Float16,
    "bf16": BFloat16,
    "int8": Int8,
    "topk": TopK,
}
CLIENT_METHODS: Final[dict[str, str]] = {
    "finetune": "clients.methods.finetune:Finetune",
    "er": "clients.methods.er:ExperienceReplay",
    "dmt": "clients.methods.dmt:DualStageMixing",
    "derpp": "clients.methods.derpp:DarkExperienceReplay",
    "agem": "clients.methods.agem:AveragedGem",
    "lwf": "clients.methods.lwf:LearningWithoutForgetting",
    "prox": "clients.methods.prox:Prox",
    "ewc": "clients.methods.ewc:ElasticWeights",
    "online-ewc": "clients.methods.online_ewc:OnlineElasticWeights",
    "dft": "clients.methods.dft:DynamicFinetuning",
    "olora": "clients.methods.olora:OrthogonalLora",
    "ssr": "clients.methods.ssr:SelectiveSelfTargets",
    "imprint": "clients.methods.imprint:Imprint",
    "hetlora": "clients.methods.hetlora:TailPenalty",
    "local-alt": "clients.methods.local_alt:LocalAlt",
}
REMEMBERING: Final = frozenset({"er", "derpp", "agem", "dmt"})
"""Client methods that fill the memory."""
WHOLE_BATCH: Final = frozenset({"derpp", "lwf"})
"""Client methods whose loss cannot be computed on a batch part by part."""
GAUGE_BOUND: Final = frozenset({"ewc", "online-ewc"})
"""Client methods that compare single entries of factors over rounds."""
KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "layer-selection": LAYER_SELECTORS,
    "rank": RANK_ALLOCATORS,
    "replay": REPLAY_POLICIES,
    "replay-rounds": REPLAY_ROUNDS,
    "screening": SCREENERS,
    "aggregation": AGGREGATORS,
    "merging": MERGERS,
    "compression": COMPRESSORS,
    "head": HEADS,
    "client-method": CLIENT_METHODS,
}

S = TypeVar("S")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def parameters_of(strategy: type) -> dict[str, Any]:
    """A strategy's hyper-parameters, each with its default; none if it is no dataclass."""
    if not is_dataclass(strategy):
        return {}
    return {field.name: field.default for field in fields(strategy)}


def build(table: Mapping[str, type[S]], choice: StrategyChoice, *, key: str) -> S:
    """The strategy ``choice`` names, its parameters checked against the class's own annotations.

    Raises: ConfigError with one fault per unknown name, unknown parameter, wrong type or range.
    """
    if choice.name not in table:
        names = ", ".join(sorted(table))
        fault = Fault(
            f"{key}.name", repr(choice.name), f"one of {names}", nearest(choice.name, table)
        )
        raise ConfigError(key, [fault])
    strategy: Any = table[choice.name]  # a class is hashable, which mypy does not see of a type[S]
    known = parameters_of(strategy)
    faults = [
        Fault(
            f"{key}.{name}",
            "a parameter",
            ", ".join(known) or "no parameters",
            nearest(name, known),
        )
        for name in choice.params
        if name not in known
    ]
    try:
        built: S = _reader(strategy).validate_python(
            {name: value for name, value in choice.params.items() if name in known}
        )
    except ValidationError as error:
        faults += [
            Fault(".".join([key, *map(str, item["loc"])]), repr(item["input"]), item["msg"])
            for item in error.errors()
        ]
    if faults:
        raise ConfigError(key, faults)
    return built


@cache
def _reader(strategy: Any) -> TypeAdapter[Any]:
    """Made once per class: it takes far longer than reading parameters."""
    return TypeAdapter(strategy)
