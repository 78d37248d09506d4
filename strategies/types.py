"""The nouns both sides speak: what the server plans, what a client answers, what a run remembers.

Everything here is frozen and knows only the standard library and NumPy.  Shapes: LoRA factors are
``lora_A (r, d_in)`` and ``lora_B (d_out, r)``; a linear layer's ``weight`` is ``(d_out, d_in)``.
All indices count from 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, NamedTuple, NewType

import numpy as np
from numpy.typing import NDArray

ClientId = NewType("ClientId", str)
GroupName = NewType("GroupName", str)
Array = NDArray[Any]

LORA_A = "lora_A"
LORA_B = "lora_B"
FACTORS = (LORA_A, LORA_B)
HEAD = GroupName("head")


@lru_cache(maxsize=4)
def client_ids(num_clients: int) -> tuple[ClientId, ...]:
    """Logical ids of simulated clients, by partition; their text order is their number's order."""
    width = len(str(num_clients - 1))
    return tuple(ClientId(f"client-{index:0{width}d}") for index in range(num_clients))


class ParamKey(NamedTuple):
    """Names one tensor: the group it belongs to and its part within the group."""

    group: GroupName
    part: str

    def __str__(self) -> str:
        return f"{self.group}.{self.part}"

    @property
    def text(self) -> str:
        """``group|part``, which ``parse`` reads back: names may hold dots, neither holds a bar."""
        return f"{self.group}|{self.part}"

    @classmethod
    def parse(cls, text: str) -> ParamKey:
        """The key whose ``text`` this is.

        Raises: ValueError if it is none.
        """
        group, bar, part = text.rpartition("|")
        if not bar:
            raise ValueError(f"tensor {text!r} is not named group|part")
        return cls(GroupName(group), part)


Tensors = Mapping[ParamKey, Array]
GroupKind = Literal["linear", "norm", "embedding", "head", "other"]
ClientKind = Literal["edge", "gpu", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """A set of tensors that is trained, or left alone, as one.

    ``parts`` gives the shape of each dense tensor; ``linear`` is ``(d_out, d_in)`` where LoRA can
    be applied; ``block`` is the transformer block, counted from the input, or None outside the
    blocks; ``role`` is the module's own short name, such as ``query``.
    """

    name: GroupName
    kind: GroupKind
    role: str
    block: int | None
    parts: Mapping[str, tuple[int, ...]]
    linear: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What the server needs to know of a model it never loads."""

    base_digest: str
    num_parameters: int
    num_blocks: int
    groups: tuple[GroupSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """One element of the stream; ``labels`` are the classes it introduces or, if shared, uses."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProfile:
    """What a client says of itself.  ``num_train`` and ``num_test`` count examples per task.

    ``tokens_per_example`` is the mean length of its training examples as the model sees them,
    ``longest_example`` the greatest, None where that was not told.
    Rates are what the server has measured of it, less ``link_error``, by how much transfers usually
    miss what was expected of them (0.5: by half); ``None`` until then.  A client that has timed
    itself says ``flops_per_second`` first, with the ``step_seconds`` it took.

    ``memory_bytes`` is what its device has or, if less, what its operator gives;
    ``memory_limit_bytes`` is what training must fit in, None where it may use what it needs, and
    ``resident_bytes`` of that are taken before training begins; ``activation_bytes`` are what it
    found one of its longest examples to keep for a backward pass through the whole model.
    ``exchange_seconds`` is what an exchange takes besides its bytes and the client's work.
    ``uplink_limit_bytes_per_second`` is the most its operator lends.  ``dtypes`` are the numbers
    its products can be made in, ``recomputes`` says whether its model's blocks can be checkpointed,
    ``keeps`` whether what comes out of them can be kept: nothing in them is random.
    """

    client_id: ClientId
    kind: ClientKind
    device: str
    memory_bytes: int
    tasks: tuple[TaskInfo, ...]
    num_train: tuple[int, ...]
    num_test: tuple[int, ...]
    model: ModelDescription
    tokens_per_example: float = 1.0
    flops_per_second: float | None = None
    uplink_bytes_per_second: float | None = None
    downlink_bytes_per_second: float | None = None
    link_error: float | None = None
    exchange_seconds: float = 0.0
    memory_limit_bytes: int | None = None
    resident_bytes: int = 0
    activation_bytes: int | None = None
    longest_example: int | None = None
    step_seconds: float | None = None
    free_disk_bytes: int | None = None
    uplink_limit_bytes_per_second: float | None = None
    dtypes: tuple[str, ...] = ("float32",)
    backprop: bool = True
    recomputes: bool = True
    keeps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Train the group's own tensors."""

    kind: Literal["dense"] = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """Train a LoRA of ``rank`` on the group; a factor that is not trained stays as it was sent."""

    rank: int
    train_a: bool = True
    train_b: bool = True
    kind: Literal["low-rank"] = "low-rank"


GroupPlan = Dense | LowRank

Statistic = Literal[
    "gradient-energy",  # ‖g‖² of the mean gradient over the batches; scalar
    "signal-to-noise",  # Σ over a group's tensors of mean(g)² / std(g); scalar
    "relative-gradient",  # ‖g‖² / ‖θ‖²; scalar
    "fisher",  # mean over examples of the squared per-example gradient, summed; scalar
    "descent",  # −Σ g·Δθ after one optimizer step: the first-order fall of the loss; scalar
    "input-spectrum",  # leading right singular vectors of the inputs times their values (k, d_in)
    "sensitivity",  # AdaLoRA's importance of each component while training; (rank,)
    "component-norms",  # ‖Aᵢ‖² and ‖Bᵢ‖² of each component before and after training; (4, rank)
    "pair-curvature",  # of the loss in the frozen pairs' factors; merging/coefficients.py
    "class-counts",  # per class, examples stood for and examples looked at; (2, C)
    "class-sums",  # sum of the pooled features of each class that has examples; (k, d)
    "moments",  # second moments of the head's features and the classes; heads/moments.py
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyChoice:
    """A name from a catalog table and its hyper-parameters."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """How a client steps: AdamW, with the learning rate scheduled over the task, not the round."""

    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    max_grad_norm: float
    schedule: Literal["constant", "linear", "cosine", "one-cycle"]

    def scaled(self, rate: float) -> Optimization:
        """With learning rates ``rate`` times as high."""
        return replace(
            self,
            learning_rate=rate * self.learning_rate,
            head_learning_rate=rate * self.head_learning_rate,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayDirective:
    """What the client's memory keeps and how much of it is replayed.

    ``capacity`` in examples or, where ``capacity_bytes`` is given, as many as fit those on average;
    ``share`` of a batch is replayed, once there is something to replay.  ``measured``: the loss of
    every example in the memory is taken under the received model, and reported task by task.
    """

    policy: StrategyChoice
    capacity: int
    share: float
    capacity_bytes: int | None = None
    measured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """``steps`` optimizer updates, starting at ``first_step`` of the task's ``total_steps``.

    On the examples of ``tasks`` or, with ``source`` "memory", on those the client's memory holds.
    A step's gradient is that of its whole batch, whatever is computed at once: with
    ``micro_batch_size`` no more examples than that; with ``checkpointing`` each block's activations
    are computed again for its backward pass instead of being kept.  ``keeps``: what comes out of
    the blocks below all trained ones may be kept, for later steps and rounds.
    """

    tasks: tuple[int, ...]
    steps: int
    batch_size: int
    first_step: int
    total_steps: int
    optimization: Optimization
    methods: tuple[StrategyChoice, ...]
    replay: ReplayDirective
    compression: tuple[StrategyChoice, ...] = ()
    reports: tuple[Statistic, ...] = ()
    source: Literal["tasks", "memory"] = "tasks"
    micro_batch_size: int | None = None
    checkpointing: bool = False
    keeps: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Measure ``statistics`` of the planned groups on at most ``batches`` batches of ``tasks``.

    Without ``batches`` all examples are looked at, and with ``remembered`` those in the client's
    memory too, each for as many as it stands for.  Nothing is trained and nothing of it stays in
    the client: not in weights, optimizer, random streams or training mode.
    """

    tasks: tuple[int, ...]
    statistics: tuple[Statistic, ...]
    batches: int | None
    batch_size: int
    learning_rate: float
    max_rank: int = 0
    remembered: bool = False
    precision: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Tensors a client is not sent because it has them.

    ``ranks`` says of each, by ``ParamKey.text``, how many components to use, 0 for what is no
    factor.  They lie in the message of ``step``; a factor that is not there is still what the run's
    seed made it and is drawn anew.
    """

    step: int = -1
    ranks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Score the incoming state on the client's held-out examples of ``tasks``.

    ``seen_tasks`` are those learnt so far; classes of other tasks are not answers.
    ``max_examples`` bounds the examples per task and client, None takes them all.
    ``release`` is the step whose evaluation scored the last published state, None before the first:
    the answers are compared with those the client gave then, if it has them.  ``keep`` these
    answers for such comparisons, since the state may be published.
    """

    tasks: tuple[int, ...]
    seen_tasks: tuple[int, ...]
    max_examples: int | None = None
    release: int | None = None
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one client is asked to do in one step of the run.

    ``groups`` are those it trains; every tensor sent along is part of the model whether trained or
    not.  ``scale`` is alpha/r, one number for all ranks.  ``recipe`` is a ``SharedRecipe`` as JSON,
    so that a client process that has just started can serve any assignment.

    ``task_index`` is the stage of the run, ``met`` the tasks that came to this client before it.

    ``kept`` names parts that belong to the client alone: it uses and trains its own value where it
    has one, else the one it was sent, and never sends it.  ``held`` are tensors of the model that
    were left out of this message.  ``downlink`` is how the tensors that are in it are compressed.
    """

    assignment_id: str
    run_id: str
    client_id: ClientId
    step_index: int
    task_index: int
    round_index: int
    recipe: str
    base_digest: str
    groups: Mapping[GroupName, GroupPlan]
    scale: float
    seed: int
    work: Work | None = None
    evaluation: Evaluation | None = None
    probe: Probe | None = None
    met: tuple[int, ...] = ()
    downlink: tuple[StrategyChoice, ...] = ()
    kept: Mapping[GroupName, tuple[str, ...]] = field(default_factory=dict)
    held: Held = field(default_factory=Held)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, without what says nothing: a plan that fits costs no byte more."""
        fields = asdict(self)
        if self.work and self.work.micro_batch_size is None:
            del fields["work"]["micro_batch_size"]
        if self.work and not self.work.checkpointing:
            del fields["work"]["checkpointing"]
        if self.work and self.work.keeps:
            del fields["work"]["keeps"]
        return fields

    def plan_hash(self) -> str:
        """Names this plan; an update made for another plan carries another hash."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Sums over a client's held-out examples of one task; means are formed on the server.

    Of the ``num_compared`` examples that the last release answered too, ``num_lost`` were right
    then and are wrong now, ``num_gained`` the other way round; all 0 where nothing was compared.
    """

    task_index: int
    num_examples: int
    num_correct: int
    loss_sum: float
    num_lost: int = 0
    num_gained: int = 0
    num_compared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """Sums over what a client's memory holds of one task, under the model it received.

    ``loss_rise`` is by how much losses exceed each example's own lowest so far, in nats.
    """

    task_index: int
    num_examples: int
    loss_sum: float
    loss_rise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What a client answers.

    ``delta`` is trained − sent, for exactly the parts the plan trains and the client does not keep,
    compressed as the plan says.  ``num_examples`` per group is the aggregation weight: a scalar, or
    one count per row where rows are trained independently (a head's classes).  ``seconds`` splits
    the client's own time by phase.  ``statistics`` and, where they are not single numbers,
    ``sketches`` are what a probe measured or the plan wanted reported, by group.
    """

    assignment_id: str
    client_id: ClientId
    plan_hash: str
    delta: Tensors
    num_examples: Mapping[GroupName, NDArray[np.int64]]
    scores: tuple[Score, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    statistics: Mapping[GroupName, Mapping[str, float]] = field(default_factory=dict)
    sketches: Tensors = field(default_factory=dict)
    peak_memory_bytes: int = 0
    remembered: tuple[Remembered, ...] = ()


class FailureReason(StrEnum):
    """Why a client's answer does not count."""

    CRASHED = "crashed"  # its app raised
    DEADLINE = "deadline"  # no answer in time
    UNREACHABLE = "unreachable"  # the node is gone
    MALFORMED = "malformed"  # bytes that are no message of ours, or far too many
    WRONG_PLAN = "wrong-plan"  # an answer to another plan, or the same answer twice
    WRONG_BASE = "wrong-base"  # another base model
    WRONG_SHAPE = "wrong-shape"  # tensors the plan does not have, or has in another shape or dtype
    NOT_FINITE = "not-finite"  # NaN or infinity
    NO_EXAMPLES = "no-examples"  # nothing to train on
    STALE = "stale"  # made for a state of too long ago
    MISSING_TENSORS = "missing-tensors"  # it was thought to hold tensors it has lost
    BUSY = "busy"  # its trainer is at work on something else
    NO_ROOM = "no-room"  # its disk cannot hold what it must keep
    OUTLIER = "outlier"  # so far from all others that screening refused it


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFailure:
    """A client that was asked and gave nothing usable, and why."""

    assignment_id: str
    client_id: ClientId
    reason: FailureReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer with what it cost: bytes of the serialised messages, seconds since the push.

    ``link`` splits the seconds of a simulated link into ``down``, ``compute`` and ``up``; it is
    empty where the link is real.
    """

    result: Update | ClientFailure
    bytes_down: int
    bytes_up: int
    seconds: float
    link: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundBudget:
    """What a client's part of a round may cost and what it consists of.

    ``deadline_seconds`` covers download, local steps and upload, None if nobody waits for it.
    ``bytes_per_value_*`` is what a value of a tensor takes on the wire after compression; ``tasks``
    are those trained on, ``own_tasks`` those of each client where they do not train on the same.
    ``divisible``: a batch's gradient may be computed part by part.
    """

    deadline_seconds: float | None = None
    tasks: tuple[int, ...] = ()
    steps: int = 1
    batch_size: int = 1
    bytes_per_value_up: float = 4.0
    bytes_per_value_down: float = 4.0
    own_tasks: Mapping[ClientId, tuple[int, ...]] = field(default_factory=dict)
    divisible: bool = True

    def held(self, client: ClientProfile) -> int:
        """Training examples ``client`` has of the tasks it trains on."""
        return sum(client.num_train[t] for t in self.own_tasks.get(client.client_id, self.tasks))


Selection = Mapping[ClientId, tuple[GroupName, ...]]
Ranks = Mapping[ClientId, Mapping[GroupName, int]]
State = Mapping[str, Array]
Evidence = Mapping[ClientId, Tensors]
"""Per client, what it last reported: ``ParamKey(group, statistic)`` → array, 0-d for one number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """All a strategy may see when it plans a round; no evaluation data.

    ``clients`` are the cohort.  ``spectra`` are the singular values of each low-rank group's merged
    update B·A, descending.  ``state`` is what the strategy itself remembered last.
    ``carried_bytes`` are what each client must be sent besides the groups chosen for it, known once
    they are.
    """

    task_index: int
    round_index: int
    groups: tuple[GroupSpec, ...]
    clients: tuple[ClientProfile, ...]
    seed: int = 0
    budget: RoundBudget = field(default_factory=RoundBudget)
    evidence: Evidence = field(default_factory=dict)
    spectra: Mapping[GroupName, Array] = field(default_factory=dict)
    state: State = field(default_factory=dict)
    carried_bytes: Mapping[ClientId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What became of one client's assignment, for strategies that learn from it.

    ``seconds`` are those of download, local work and upload together; ``loss`` is the mean training
    loss, None for a client that did not answer.
    """

    client_id: ClientId
    groups: Mapping[GroupName, GroupPlan]
    answered: bool
    loss: float | None
    bytes_down: int
    bytes_up: int
    seconds: float
    evidence: Tensors
    remembered: tuple[Remembered, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What the server knows a client to have.

    ``ranks`` are the tensors of the message of ``step``, by ``ParamKey.text``, each with the number
    of components that were sent.  ``own`` are parts the client keeps for itself.
    """

    step: int = -1
    ranks: Mapping[str, int] = field(default_factory=dict)
    own: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalState:
    """All a resume needs: ``step_index`` is the next step to do, tensors are relative to the base.

    A low-rank group holds its factors (ΔW = scale · B A), a dense group its offset from the base.
    ``memories`` hold what each kind of strategy remembers, ``evidence`` what clients reported last.
    ``changed`` is the step since which a tensor has its value, by ``ParamKey.text``; what is not
    listed is as it was drawn.
    """

    step_index: int
    tensors: Tensors
    memories: Mapping[str, State] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)
    holdings: Mapping[ClientId, Holding] = field(default_factory=dict)
