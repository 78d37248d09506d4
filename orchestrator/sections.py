"""The tables of a run file that the server alone reads; the shared ones are in the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from strategies.recipe import Positive, Section
from strategies.types import Optimization, StrategyChoice

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
_ADDRESS: Final = r"^(auto|[A-Za-z0-9.-]+:[0-9]{1,5})$"
Fraction = Annotated[float, Field(ge=0, le=1)]


class Choice(BaseModel):
    """A strategy by name; every other key of the table is one of its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    def as_choice(self) -> StrategyChoice:
        """The name and its parameters, apart."""
        return StrategyChoice(name=self.name, params=dict(self.model_extra or {}))


class Buffer(Section):
    """Rounds that do not wait for everybody: training steps become flushes of a buffer."""

    size: Positive
    """Updates a step closes with, whichever clients' they are; ``federation.cohort`` clients are at
    work at any time, and each is given new work, from the newest state, once its own was used."""
    max_staleness: NonNegative = 10
    """Steps that may close while an update is made; of more, it is put on record and not used."""


class Quarantine(Section):
    """Clients that answer wrongly again and again are not asked for a while.

    One in quarantine counts as away: with fewer left than ``federation.min_replies``, or than a
    ``federation.min_clients`` that the run file gives, the run ends.  It is scored all the same.
    """

    faults: Positive = 3
    """Faulty replies, since the start or its last release, after which a client is put there."""
    rounds: Positive = 10
    """Training rounds for which it stays."""


class Federation(Section):
    """Who takes part in a round, and for how long the server waits."""

    clients: Positive = 10
    min_clients: Positive | None = None
    """Clients that must be there for the run to start, within ``round_timeout_seconds``; the others
    may join later.  Default: all."""
    cohort: Positive | None = None
    """Clients asked per round; default: all."""
    min_replies: Positive = 1
    """Usable replies a round of training needs (other steps need one), and clients that must be
    there for it to begin.  Everybody asked is waited for until the deadline all the same; what
    comes after it is put on record and never used."""
    round_retries: NonNegative = 2
    """How often a step that got too few usable replies is begun anew, with a cohort drawn from
    those who are there then, before the run fails."""
    round_timeout_seconds: PositiveFloat = 600.0
    """How long the server itself waits for replies."""
    buffer: Buffer | None = None
    """Asynchronous training; default: every round waits for its cohort."""
    quarantine: Quarantine | None = None
    """Rest for clients that answer wrongly; default: everybody is asked again and again."""
    deadline_seconds: PositiveFloat | None = None
    """What a client's download, training and upload may take; plans are made to fit.  On simulated
    links later answers are discarded."""
    transport: Literal["ray", "in-process"] = "ray"
    ray_address: Annotated[str, Field(pattern=_ADDRESS)] | None = None
    """``HOST:PORT`` of a Ray cluster that simulates the clients, ``auto`` for the one running here;
    this machine must be a node of it, and all nodes share the data directory.  Default: a Ray of
    the run's own, on this machine."""
    threads_per_client: Positive = 1
    """CPU threads of a local training; as many simulated clients run at once as fit the cores."""


class Adapter(Section):
    """How low-rank groups are scaled."""

    scale: PositiveFloat = 2.0
    """alpha / r, the same for every rank."""


class Learning(Section):
    """The rounds of a task and what a client does in one."""

    mode: Literal["sequence", "joint"] = "sequence"
    """``joint`` trains all tasks at once for the same number of rounds in all: the ceiling."""
    rounds_per_task: Positive = 5
    adapted_tasks: NonNegative | None = None
    """The first so many tasks are trained, later ones learnt by a solved head alone; default:
    all."""
    local_steps: NonNegative = 8
    """Optimizer updates per client and round."""
    batch_size: Positive = 16
    """Examples per update, replayed ones included."""
    learning_rate: PositiveFloat = 1e-3
    head_learning_rate: PositiveFloat = 1e-2
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: PositiveFloat = 1.0
    schedule: Literal["constant", "linear", "cosine", "one-cycle"] = "constant"
    """Learning rate over the rounds of a task."""
    methods: tuple[Choice, ...] = (Choice(name="finetune"),)
    """Client methods, applied in order."""

    def optimization(self) -> Optimization:
        """The part that travels in an assignment."""
        return Optimization(
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            schedule=self.schedule,
        )


class Steering(Section):
    """How much is replayed follows how much is forgotten."""

    lowest_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Part of each batch that is replayed where nothing has been forgotten."""
    full_at_nats: PositiveFloat = 0.5
    """Mean rise of remembered losses at which ``replay.share`` is reached."""


class Replay(Section):
    """The memory each client keeps of its own past examples."""

    policy: Choice = Choice(name="reservoir")
    examples_per_client: NonNegative = 50
    bytes_per_client: Positive | None = None
    """Instead of ``examples_per_client``: as many examples as take this, on the client's average,
    with the logits a method stores of them."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Part of each batch that is replayed."""
    steering: Steering | None = None
    """Let the server set each client's share by what it reports of its memory, up to ``share``."""
    rounds: Choice = Choice(name="none")
    """Rounds that train on memories alone."""


class Strategies(Section):
    """What the server decides with."""

    layer_selection: Choice = Choice(name="all")
    rank: Choice = Choice(name="fixed")
    screening: Choice = Choice(name="none")
    """Which updates of a round are believed, before they are aggregated."""
    aggregation: Choice = Choice(name="exact")
    head: Choice = Choice(name="trained")
    """What sets the classifier's rows: gradients, or sums over examples."""
    merging: Choice = Choice(name="none")
    """What becomes of the global model at a task's end."""
    compression: tuple[Choice, ...] = ()
    """Of updates, applied in order; what is lost is added to the client's next update."""
    downlink: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """Of the tensors clients are sent."""

    @model_validator(mode="before")
    @classmethod
    def _parameters_of_the_default(cls, tree: Any) -> Any:
        """A table without a name sets parameters of the default strategy."""
        if not isinstance(tree, Mapping):
            return tree
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {
            key: {"name": defaults[key].name, **table}
            if key in defaults and isinstance(table, Mapping)
            else table
            for key, table in tree.items()
        }


class EvaluationPlan(Section):
    """What is scored besides the accuracy matrix, which is measured after every task."""

    each_round: bool = False
    """Score the incoming state on the tasks learnt so far with every training message."""
    max_examples: Positive | None = None
    """Bound on the examples per task and client of those mid-task scores."""
    intruders: bool = False
    """Count intruder dimensions after every task; fetches the base's weights from a client once."""


class Requirements(Section):
    """What a state must meet after a task to be published; fractions of examples, 0 to 1.

    A state that does not is kept aside and named with every reason.  What is not set is not asked.
    """

    max_drop: Fraction | None = None
    """Accuracy that any earlier task may lose against its best among the published states."""
    max_negative_flips: Fraction | None = None
    """Share of held-out examples, of the tasks that the last published state had learnt, that were
    right then and are wrong now."""
    min_accuracy: Fraction | None = None
    """ACC: mean accuracy over the tasks learnt."""
    max_forgetting: Fraction | None = None
    """Mean loss of the earlier tasks against their best so far, published or not."""


class Checkpoints(Section):
    """What of a run's past states stays on the server's disk."""

    keep: Positive = 3
    """Newest committed states; a run whose newest one turns out damaged goes on from the one before
    it.  Clients can step back as far as the default."""


class Tracking(Section):
    """A server that shows the run beside others: params, metrics, adapter and report.

    The run database stays the source.  A server that is away neither stops nor slows the run.
    """

    name: Literal["mlflow"]
    url: str | None = None
    """``http://…`` or ``https://…``; default: MLFLOW_TRACKING_URI.  Its password belongs in
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    experiment: str = "perennial"

    @field_validator("url")
    @classmethod
    def _of_a_server(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "http://server")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an http:// or https:// URL")
        return url


class Publish(Section):
    """Which states become the run's adapter."""

    require: Requirements = Requirements()
