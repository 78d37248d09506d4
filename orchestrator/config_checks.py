"""What single fields of a run file cannot see: strategies by name, and what goes together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.buffer_checks import check_buffer
from orchestrator.screening_checks import check_screening
from strategies.catalog import CLIENT_METHODS, GAUGE_BOUND, REMEMBERING, nearest
from strategies.errors import ConfigError, Fault
from strategies.protocols import Personalizing, Refining

if TYPE_CHECKING:
    from orchestrator.config import RunConfig


def faults_of(config: RunConfig) -> list[Fault]:
    """Everything wrong with a run file whose fields are fine one by one."""
    found = _check_strategies(config) + _check_together(config) + _check_tracking(config)
    found += _check_transport(config)
    return found or (
        _check_capabilities(config)
        + _check_head(config)
        + _check_memory(config)
        + check_buffer(config)
        + check_screening(config)
    )


def _check_tracking(config: RunConfig) -> list[Fault]:
    """A run file is put on record and shown, so no password may be in it."""
    url = config.tracking and config.tracking.url
    if not url or "@" not in urlsplit(url).netloc:
        return []
    hint = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return [Fault("tracking.url", "one with a user or password", "a URL without", hint)]


def _check_transport(config: RunConfig) -> list[Fault]:
    address, transport = config.federation.ray_address, config.federation.transport
    if address is None or transport == "ray":
        return []
    hint = 'remove it, or set federation.transport = "ray"'
    found = f"{address!r} with transport = {transport!r}"
    return [Fault("federation.ray_address", found, "no address where Ray is not used", hint)]


def _check_strategies(config: RunConfig) -> list[Fault]:
    """Every strategy by name and parameters, each checked whatever is wrong with the others."""
    builders: list[Callable[[], object]] = [
        config.layer_selector,
        config.rank_allocator,
        config.aggregator,
        config.screener,
        config.head_solver,
        config.merger,
        config.compressors,
        config.replay_policy,
        config.replay_rounds,
    ]
    faults = list[Fault]()
    for builder in builders:
        try:
            builder()
        except ConfigError as error:
            faults += error.faults
    known = ", ".join(sorted(CLIENT_METHODS))
    for index, method in enumerate(config.learning.methods):
        if method.name not in CLIENT_METHODS:
            key = f"learning.methods.{index}.name"
            faults.append(
                Fault(
                    key, repr(method.name), f"one of {known}", nearest(method.name, CLIENT_METHODS)
                )
            )
    return faults


def _check_capabilities(config: RunConfig) -> list[Fault]:
    """Strategies that are fine by themselves and do not go together."""
    ranks, merging = config.strategy.rank.name, config.strategy.aggregation.name
    allocator, aggregator, faults = config.rank_allocator(), config.aggregator(), list[Fault]()
    needs = aggregator.capabilities
    if needs.needs_equal_rank and not allocator.same_for_all:
        faults.append(
            Fault(
                "strategy.aggregation.name",
                repr(merging),
                f"an aggregation that takes unequal ranks, which strategy.rank = {ranks!r} gives",
                "aggregation 'exact' or rank 'fixed'; docs/strategies.md lists what goes together",
            )
        )
    if needs.changes_base and getattr(allocator, "needs_spectrum", False):
        faults.append(
            Fault(
                "strategy.aggregation.name",
                repr(merging),
                f"one that keeps its merged update in the factors; strategy.rank = {ranks!r} "
                "reads their spectrum",
                "aggregation 'exact'",
            )
        )
    if allocator.max_rank and not needs.keeps_gauge:
        faults += [
            Fault(
                f"learning.methods.{index}.name",
                repr(method.name),
                "a method that does not compare single entries of LoRA factors, which "
                f"strategy.aggregation = {merging!r} turns or draws anew every round",
                "aggregation 'ffa' or 'fedavg', or rank 'dense'; docs/strategies.md lists which "
                "aggregations keep the gauge",
            )
            for index, method in enumerate(config.learning.methods)
            if method.name in GAUGE_BOUND
        ]
    if config.evaluation.intruders and allocator.max_rank == 0:
        expected = f"false, since strategy.rank = {ranks!r} makes no low-rank updates"
        faults.append(Fault("evaluation.intruders", "true", expected))
    faults += [
        Fault(
            f"strategy.compression.{index}.name",
            repr(config.strategy.compression[index].name),
            "a compressor that keeps the shape of what it is given",
            "put this one first",
        )
        for index, compressor in enumerate(config.compressors())
        if index and not compressor.keeps_shape
    ]
    return faults + _check_merging(config)


def _check_merging(config: RunConfig) -> list[Fault]:
    """What goes together with merging at a task's end, and with client method ``olora``."""
    name, strategy = config.strategy.merging.name, config.strategy
    folds, keeps = config.merger().changes_base, config.aggregator().capabilities.changes_base
    faults = [
        Fault(
            f"learning.methods.{index}.name",
            "'olora'",
            f"another method: with strategy.merging = {name!r} there is no frozen adapter of an "
            "earlier task to be orthogonal to",
            "merging 'olora'",
        )
        for index, method in enumerate(config.learning.methods)
        if method.name == "olora" and not folds and not keeps
    ]
    aggregation = f"strategy.aggregation = {strategy.aggregation.name!r}"
    selection = f"strategy.layer_selection = {strategy.layer_selection.name!r}"
    rank, allocator = f"strategy.rank = {strategy.rank.name!r}", config.rank_allocator()
    personal = "leaves parts of the model with the clients"
    conflicts = (
        (config.learning.mode == "joint", "learning.mode = 'joint'", "has one task only"),
        (keeps, aggregation, "keeps its update in frozen pairs"),
        (isinstance(config.aggregator(), Personalizing), aggregation, personal),
        (isinstance(config.layer_selector(), Personalizing), selection, personal),
        (folds and allocator.max_rank == 0, rank, "has no adapters to fold"),
        (
            folds and getattr(allocator, "needs_spectrum", False),
            rank,
            "reads the adapters' spectrum",
        ),
    )
    faults += [
        Fault("strategy.merging.name", repr(name), f"'none' with {other}, which {what}")
        for found, other, what in conflicts
        if found and name != "none"
    ]
    return faults


def _check_head(config: RunConfig) -> list[Fault]:
    """A solved head goes with the architecture it is made for."""
    solver, model, faults = config.head_solver(), config.model, list[Fault]()
    if solver is None:
        if config.learning.adapted_tasks is not None:
            hint = 'strategy.head = { name = "analytic" }, or leave adapted_tasks out'
            faults.append(
                Fault(
                    "learning.adapted_tasks",
                    str(config.learning.adapted_tasks),
                    "a solved head, which learns tasks without training",
                    hint,
                )
            )
        return faults
    name = config.strategy.head.name
    if model.pooling == "model" or model.task == "causal-lm":
        expected = f'a classifier with model.pooling = "mean" or "cls" for head {name!r}'
        faults.append(Fault("model.pooling", repr(model.pooling), expected))
    if model.head != solver.head:
        expected = f"{solver.head!r} for strategy.head.name = {name!r}"
        faults.append(Fault("model.head", repr(model.head), expected))
    return faults


def _check_memory(config: RunConfig) -> list[Fault]:
    """What looks at past examples needs somebody who remembers."""
    if any(method.name in REMEMBERING for method in config.learning.methods):
        return []
    hint = 'add { name = "er" }; with replay.share = 0 it fills the memory and replays nothing'
    expected = f"a client method that fills the memory: {', '.join(sorted(REMEMBERING))}"
    found = ", ".join(method.name for method in config.learning.methods) or "none"
    wanting = {
        "replay.rounds": config.replay_rounds() is not None,
        "replay.steering": config.replay.steering is not None,
        f"strategy.merging = {config.strategy.merging.name!r}": isinstance(
            config.merger(), Refining
        ),
    }
    return [
        Fault("learning.methods", f"{found} with {key}", expected, hint)
        for key, wants in wanting.items()
        if wants
    ]


def _check_together(config: RunConfig) -> list[Fault]:
    """What single fields cannot see."""
    federation, faults = config.federation, list[Fault]()
    if config.cohort_size() > federation.clients:
        expected = f"at most federation.clients = {federation.clients}"
        faults.append(Fault("federation.cohort", str(federation.cohort), expected))
    if (federation.min_clients or 1) > federation.clients:
        expected = f"at most federation.clients = {federation.clients}"
        faults.append(Fault("federation.min_clients", str(federation.min_clients), expected))
    if federation.min_replies > config.cohort_size():
        expected = f"at most the cohort of {config.cohort_size()}"
        faults.append(Fault("federation.min_replies", str(federation.min_replies), expected))
    faults += _check_arrival(config)
    if config.model.task == "causal-lm" and config.stream.kind != "domain-incremental":
        faults.append(
            Fault(
                "stream.kind",
                repr(config.stream.kind),
                "'domain-incremental'",
                "causal-lm has no classes",
            )
        )
    if (config.data.source == "digits") != (config.model.task == "image-classification") and (
        config.data.source == "digits"
    ):
        faults.append(
            Fault("model.task", repr(config.model.task), "'image-classification' for digits")
        )
    if config.data.source in ("jsonl", "csv", "parquet"):
        faults += [
            Fault(f"data.{split}", "nothing", f"the path of the {split} file")
            for split in ("train", "test")
            if getattr(config.data, split) is None
        ]
    if config.data.source == "huggingface" and config.data.name is None:
        faults.append(Fault("data.name", "nothing", "a data set's hub name or path"))
    return faults


def _check_arrival(config: RunConfig) -> list[Fault]:
    """Whether clients can meet the tasks apart, or notice where they begin."""
    stream, faults = config.stream, list[Fault]()
    if stream.arrival != "together" and config.learning.mode == "joint":
        expected = "'together', since joint training gives all tasks to all clients at once"
        hint = 'remove stream.arrival or set learning.mode = "sequence"'
        faults.append(Fault("stream.arrival", repr(stream.arrival), expected, hint))
    if stream.boundaries == "detected":
        faults += _check_detection(config)
    if stream.lag and stream.lag > config.federation.clients:
        expected = f"at most federation.clients = {config.federation.clients}"
        hint = (
            "client k starts k mod lag stages later, so a longer lag leaves stages without anyone"
        )
        faults.append(Fault("stream.lag", str(stream.lag), expected, hint))
    return faults


def _check_detection(config: RunConfig) -> list[Fault]:
    faults = list[Fault]()
    if config.learning.mode == "joint":
        expected = "'given', since joint training has no boundaries"
        hint = "remove stream.boundaries"
        faults.append(Fault("stream.boundaries", "'detected'", expected, hint))
    if config.model.task == "causal-lm" and config.stream.boundary_signal == "entropy":
        expected = "'loss', since a causal-lm has no classes to be unsure of"
        faults.append(Fault("stream.boundary_signal", "'entropy'", expected))
    return faults
