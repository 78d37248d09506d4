"""The run file: TOML → validated, frozen ``RunConfig``.

Every fault is reported at once, each with its key, what was found, what was expected and, for an
unknown word, the nearest known one.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError, field_validator

from orchestrator.config_checks import faults_of
from orchestrator.defaults import with_defaults
from orchestrator.links import Links
from orchestrator.sections import (
    Adapter,
    Checkpoints,
    EvaluationPlan,
    Federation,
    Learning,
    NonNegative,
    Publish,
    Replay,
    Strategies,
    Tracking,
)
from strategies.arrival import Arrivals, arrivals
from strategies.catalog import (
    AGGREGATORS,
    COMPRESSORS,
    HEADS,
    LAYER_SELECTORS,
    MERGERS,
    RANK_ALLOCATORS,
    REPLAY_POLICIES,
    REPLAY_ROUNDS,
    SCREENERS,
    build,
    nearest,
)
from strategies.errors import ConfigError, Fault
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
    Weighing,
)
from strategies.recipe import (
    DataRecipe,
    ModelRecipe,
    PartitionRecipe,
    Section,
    SharedRecipe,
    StreamRecipe,
)
from strategies.types import ReplayDirective, StrategyChoice, client_ids

# How a run is carried out, which is not what it computes.
_OPERATION: Final = {
    "transport", "ray_address", "round_timeout_seconds", "min_clients", "round_retries",
}  # fmt: skip


class RunConfig(Section):
    """A whole run file."""

    name: str = "run"
    seed: NonNegative = 0
    model: ModelRecipe
    data: DataRecipe
    stream: StreamRecipe
    partition: PartitionRecipe = PartitionRecipe()
    federation: Federation = Federation()
    adapter: Adapter = Adapter()
    learning: Learning = Learning()
    replay: Replay = Replay()
    strategy: Strategies = Strategies()
    evaluation: EvaluationPlan = EvaluationPlan()
    publish: Publish = Publish()
    checkpoints: Checkpoints = Checkpoints()
    links: Links | None = None
    """Simulated links; without them times are what they are."""
    tracking: Tracking | None = None
    """Mirror the run to a tracking server; ``"mlflow"`` is short for ``{ name = "mlflow" }``."""

    @field_validator("tracking", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    def digest(self) -> str:
        """Names what the run computes; how and under which name it is run does not matter."""
        plain = self.model_dump(
            mode="json",
            exclude={"name": True, "checkpoints": True, "tracking": True, "federation": _OPERATION},
        )
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]

    def shared_recipe(self) -> SharedRecipe:
        """The part clients build from."""
        return SharedRecipe(
            seed=self.seed,
            num_clients=self.federation.clients,
            model=self.model,
            data=self.data,
            stream=self.stream,
            partition=self.partition,
        )

    def cohort_size(self) -> int:
        """Clients asked per round."""
        return self.federation.cohort or self.federation.clients

    def arrivals(self, num_tasks: int) -> Arrivals | None:
        """When each client meets each task; None where all meet the same at the same time."""
        if self.stream.arrival == "together":
            return None
        return arrivals(self.stream, client_ids(self.federation.clients), num_tasks, self.seed)

    def layer_selector(self) -> LayerSelector:
        """The configured layer selection."""
        return build(
            LAYER_SELECTORS,
            self.strategy.layer_selection.as_choice(),
            key="strategy.layer_selection",
        )

    def rank_allocator(self) -> RankAllocator:
        """The configured rank policy."""
        return build(RANK_ALLOCATORS, self.strategy.rank.as_choice(), key="strategy.rank")

    def aggregator(self) -> Aggregator:
        """The configured aggregation."""
        return build(AGGREGATORS, self.strategy.aggregation.as_choice(), key="strategy.aggregation")

    def screener(self) -> Screener | None:
        """What judges a round's updates before they are aggregated; None if all count."""
        screening = build(SCREENERS, self.strategy.screening.as_choice(), key="strategy.screening")
        return screening if isinstance(screening, Screener) else None

    def head_solver(self) -> HeadSolver | None:
        """What sets the head from sums; None if it is trained."""
        head = build(HEADS, self.strategy.head.as_choice(), key="strategy.head")
        return head if isinstance(head, HeadSolver) else None

    def replay_rounds(self) -> ReplayRounds | None:
        """The configured replay rounds, if there are any."""
        rounds = build(REPLAY_ROUNDS, self.replay.rounds.as_choice(), key="replay.rounds")
        return rounds if isinstance(rounds, ReplayRounds) else None

    def steers_replay(self) -> bool:
        """Whether the server decides by what it is told of forgetting."""
        return self.replay_rounds() is not None or self.replay.steering is not None

    def replay_directive(self) -> ReplayDirective:
        """The part that travels in an assignment."""
        return ReplayDirective(
            policy=self.replay.policy.as_choice(),
            capacity=self.replay.examples_per_client,
            share=self.replay.share,
            capacity_bytes=self.replay.bytes_per_client,
            measured=self.steers_replay() or isinstance(self.replay_policy(), Weighing),
        )

    def merger(self) -> Merger:
        """The configured merging at a task's end."""
        return build(MERGERS, self.strategy.merging.as_choice(), key="strategy.merging")

    def uplink_choices(self) -> tuple[StrategyChoice, ...]:
        """The compressors of updates, by name."""
        return tuple(choice.as_choice() for choice in self.strategy.compression)

    def downlink_choices(self) -> tuple[StrategyChoice, ...]:
        """The compressors of what clients are sent, by name."""
        name = self.strategy.downlink
        return () if name == "fp32" else (StrategyChoice(name=name),)

    def compressors(self) -> tuple[Compressor, ...]:
        """The configured compression of updates."""
        return tuple(
            build(COMPRESSORS, choice, key=f"strategy.compression.{index}")
            for index, choice in enumerate(self.uplink_choices())
        )

    def replay_policy(self) -> ReplayPolicy:
        """The configured memory policy."""
        return build(REPLAY_POLICIES, self.replay.policy.as_choice(), key="replay.policy")


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply ``key.path=value`` overrides, whose values are TOML or plain text.

    Raises: ConfigError with every fault found.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "give a run file's path, or write one with `perennial init digits`"
        raise ConfigError(str(path), [Fault("file", "nothing", "a TOML run file", hint)]) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            str(path), [Fault("file", str(error), "a readable TOML run file")]
        ) from None
    faults = [fault for text in overrides if (fault := _apply_override(tree, text))]
    return parse_config(tree, source=str(path), faults=faults)


def parse_config(
    tree: Mapping[str, Any], *, source: str = "config", faults: Sequence[Fault] = ()
) -> RunConfig:
    """Validate an already parsed run file, with a strategy where it has none.

    Raises: ConfigError with every fault found, those in ``faults`` first.
    """
    found = list(faults)
    try:
        config = RunConfig.model_validate(with_defaults(tree))
    except ValidationError as error:
        found += [_fault_of(item) for item in error.errors()]
        raise ConfigError(source, found) from None
    found += faults_of(config)
    if found:
        raise ConfigError(source, found)
    return config


def config_schema() -> dict[str, Any]:
    """JSON Schema of a run file."""
    return RunConfig.model_json_schema()


def _apply_override(tree: dict[str, Any], text: str) -> Fault | None:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        return Fault("--set", repr(text), "key.path=value")
    *parents, leaf = key.strip().split(".")
    table = tree
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            return Fault(f"--set {key}", f"{parent} is a value", "a table")
    table[leaf] = _parse_value(value.strip())
    return None


def _parse_value(text: str) -> Any:
    """TOML where it parses, else the text itself, so that ``name=er`` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fault_of(item: Any) -> Fault:  # a pydantic error is an open dict
    key = ".".join(str(part) for part in item["loc"]) or "file"
    if item["type"] == "extra_forbidden":
        known = _fields_at(item["loc"][:-1])
        return Fault(
            key,
            "an unknown key",
            f"one of {', '.join(known)}",
            nearest(str(item["loc"][-1]), known),
        )
    if item["type"] == "missing":
        return Fault(key, "nothing", "a value")
    if item["type"] == "union_tag_invalid":
        tags, found = item["ctx"]["expected_tags"], item["ctx"]["tag"]
        known = [tag.strip(" '") for tag in tags.split(",")]
        return Fault(f"{key}.name", repr(found), f"one of {tags}", nearest(found, known))
    expected = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    choices = item.get("ctx", {}).get("expected", "")
    hint = nearest(str(item["input"]), choices.replace("'", "").replace(" or ", ", ").split(", "))
    found = "a table" if isinstance(item["input"], Mapping) else repr(item["input"])
    return Fault(key, found, expected, hint if item["type"] == "literal_error" else "")


def _fields_at(location: Sequence[str | int]) -> list[str]:
    """The keys a run file may have at ``location``."""
    section: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        section = next(
            (
                t
                for t in _types_in(section.model_fields[part].annotation)
                if hasattr(t, "model_fields")
            ),
            RunConfig,
        )
    return sorted(section.model_fields)


def _types_in(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(found for arg in inner for found in _types_in(arg))]
