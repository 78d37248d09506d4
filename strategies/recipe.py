"""The part of a run file that both sides must read alike: model, data, stream, partition.

Frozen pydantic models: they validate at the edge and travel as JSON.  Units are in the names or in
the field's own line.  ``orchestrator.config`` wraps them into the whole run file; ``clients``
builds from them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the run file: unknown keys are faults, values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PretextRecipe(Section):
    """Train a ``from-config`` base for seconds, without labels, on images no client owns."""

    public_examples: Positive = 300
    """Examples set aside from the source's training split before it is dealt to clients."""
    steps: Positive = 400
    batch_size: Positive = 32
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3


class ModelRecipe(Section):
    """Which base model, and how a prediction is read from it."""

    task: Literal["sequence-classification", "image-classification", "causal-lm"]
    name: str
    """Hub name or local path of a transformers checkpoint, or ``from-config``."""
    architecture: str | None = None
    """With ``from-config``: a transformers model type such as ``vit``, ``bert``, ``llama``."""
    config: dict[str, int | float | str | bool] = Field(default_factory=dict)
    """Fields of the transformers configuration that differ from its defaults."""
    tokenizer: str | None = None
    """Hub name or path; default: the checkpoint's own; ``bytes`` needs no file."""
    pooling: Literal["model", "mean", "cls"] = "model"
    """How token features become one vector: the checkpoint's own head, or our pooling and head."""
    head: Literal["linear", "cosine", "simplex", "random-features"] = "linear"
    """With our pooling: a linear layer; cosine similarity to one vector per class; a trained
    projection to the fixed corners of a simplex; a linear layer on random features."""
    random_features: Positive = 5000
    """With ``head = "random-features"``: how many."""
    normalize: bool = True
    """With our pooling: scale pooled features to unit length."""
    max_length: Positive = 128
    """Tokens kept of an example."""
    max_new_tokens: Positive = 16
    """Causal LM: tokens generated when an answer is scored."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    pretext: PretextRecipe | None = None

    @model_validator(mode="after")
    def _from_config_is_complete(self) -> ModelRecipe:
        if (self.name == "from-config") != (self.architecture is not None):
            raise ValueError('architecture goes with name = "from-config", and only with it')
        return self


class DataRecipe(Section):
    """Where the examples are.  Paths are read on the machine that owns them."""

    source: Literal["digits", "jsonl", "csv", "parquet", "huggingface"]
    train: str | None = None
    """Path of the training file; for ``huggingface`` the split's name."""
    test: str | None = None
    name: str | None = None
    """``huggingface``: hub name or path of the data set."""
    subset: str | None = None
    """``huggingface``: configuration name."""
    text_column: str = "text"
    text_pair_column: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    messages_column: str | None = None
    """Causal LM: chat messages ``[{role, content}, …]``; the last turn is the completion."""
    labels: tuple[str, ...] | None = None
    """The declared label set, in order; default: all labels found, sorted."""


class TaskRecipe(Section):
    """One task given by hand."""

    name: str
    labels: tuple[str, ...] | None = None
    """Class- and task-incremental: the labels this task brings."""
    value: str | None = None
    """Domain-incremental: the value of ``task_column``; default: the name."""


class StreamRecipe(Section):
    """How examples become a sequence of tasks."""

    kind: Literal["class-incremental", "domain-incremental", "task-incremental"]
    tasks: tuple[TaskRecipe, ...] | None = None
    classes_per_task: Positive | None = None
    """Cut the declared labels into tasks of this many, in order."""
    task_column: str | None = None
    """A column that names each example's task; in order of first appearance unless given."""
    arrival: Literal["together", "shuffled", "staggered"] = "together"
    """Whether all clients meet the same task at once, each meets the tasks in an order of its own,
    or all in the same order but some later than others."""
    lag: Annotated[int, Field(ge=2)] | None = None
    """``staggered``: client k starts k mod lag stages later, one stage being one task long."""

    boundaries: Literal["given", "detected"] = "given"
    """Whether clients are told that a task begins, or notice it by the received model's answers."""
    boundary_signal: Literal["loss", "entropy"] = "loss"
    """``detected``: what jumps on examples of a new task.  Over-confident models are wrong on them
    before they are unsure, so that the entropy jumps a round later than the loss."""
    boundary_jump: Annotated[float, Field(gt=0)] = 0.5
    """``detected``: nats above the lowest mean signal since the last boundary."""

    @model_validator(mode="after")
    def _lag_belongs_to_staggered(self) -> StreamRecipe:
        if (self.arrival == "staggered") != (self.lag is not None):
            raise ValueError('lag goes with arrival = "staggered", and only with it')
        return self


class PartitionRecipe(Section):
    """How the training and test examples are dealt to simulated clients."""

    kind: Literal["iid", "dirichlet", "column"] = "iid"
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Dirichlet concentration over clients, per class (per domain without labels)."""
    column: str | None = None
    """``column``: its values are dealt whole, each to one client."""


class SharedRecipe(Section):
    """What every party of a run must agree on."""

    seed: int
    num_clients: Positive
    model: ModelRecipe
    data: DataRecipe
    stream: StreamRecipe
    partition: PartitionRecipe
