"""From a recipe to a data set: read, cut into tasks, deal, encode."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients.data.batches import Encoded
from clients.data.checkpoint_tokenizer import open_tokenizer
from clients.data.content import Content, Images, columns_of, example_keys, read_content
from clients.data.dataset import Dataset
from clients.data.encoding import Longs
from clients.data.labels import label_names, read_labels
from clients.data.partition import Pool, deal, shuffled
from clients.data.sources import read_source
from clients.data.stream import Stream, build_stream
from clients.data.table import Table
from clients.data.tokenizer import Tokenizer
from strategies.errors import DataError
from strategies.recipe import SharedRecipe
from strategies.rng import rng_for

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Split:
    """Rows, what they say, and a key for each."""

    table: Table
    content: Content
    keys: NDArray[np.uint64]


def open_dataset(
    shared: SharedRecipe, cache_folder: Path, data_folder: Path | None = None
) -> Dataset:
    """Read, cut into tasks, deal and encode; the same recipe gives the same data set everywhere.

    Relative paths start at ``data_folder``, else at the working directory.  Tokens are kept in
    ``cache_folder``, which processes may share.
    Raises: DataError or ModelError naming what is wrong and where.
    """
    with_images = shared.model.task == "image-classification"
    tokenizer = None if with_images else open_tokenizer(shared.model)
    tables = read_source(shared.data, columns_of(shared), data_folder)
    labels = _labels(shared, tables)
    train, test = (_split(shared, table, tokenizer) for table in tables)
    public, train = _set_aside(shared, train)
    stream = build_stream(shared.stream, train.table, test.table, labels, _label_column(shared))
    owners = _owners(shared, stream, train, test)
    dataset = Dataset(
        tasks=stream.tasks,
        label_names=label_names(stream.tasks),
        train=_encoded(shared, stream, train, stream.train, cache_folder),
        test=_encoded(shared, stream, test, stream.test, cache_folder),
        train_owners=owners[0],
        test_owners=owners[1],
        num_clients=shared.num_clients,
        tokenizer=tokenizer,
        public_images=public,
        digest=_digest(stream, train, test),
    )
    if dataset.num_truncated:
        log.warning("%s; raise model.max_length to keep them whole", _truncation(shared, dataset))
    return dataset


def _truncation(shared: SharedRecipe, dataset: Dataset) -> str:
    total, limit = len(dataset.train) + len(dataset.test), shared.model.max_length
    return f"cut {dataset.num_truncated} of {total} examples to {limit} tokens"


def _label_column(shared: SharedRecipe) -> str | None:
    return None if shared.model.task == "causal-lm" else shared.data.label_column


def _labels(shared: SharedRecipe, tables: tuple[Table, Table]) -> tuple[str, ...]:
    column = _label_column(shared)
    return () if column is None else read_labels(*tables, column, shared.data.labels)


def _split(shared: SharedRecipe, table: Table, tokenizer: Tokenizer | None) -> _Split:
    content = read_content(shared, table, tokenizer)
    dealt_by = shared.partition.column if shared.partition.kind == "column" else None
    names = [name for name in (_label_column(shared), shared.stream.task_column, dealt_by) if name]
    columns = [table.texts(name) for name in names] or [[""] * len(table)]  # nothing but content
    return _Split(table=table, content=content, keys=example_keys(content, columns))


def _set_aside(shared: SharedRecipe, train: _Split) -> tuple[NDArray[np.float32] | None, _Split]:
    """The public images of ``model.pretext``, and the training examples without them."""
    pretext, content = shared.model.pretext, train.content
    if pretext is None:
        return None, train
    if not isinstance(content, Images):
        raise DataError(f"model.pretext needs images, found {shared.model.task}; remove it")
    if pretext.public_examples >= len(train.table):
        raise DataError(
            f"model.pretext.public_examples: found {pretext.public_examples}, expected fewer "
            f"than the {len(train.table)} training examples"
        )
    order = shuffled(train.keys, rng_for(shared.seed, "public"))
    public, kept = order[: pretext.public_examples], np.sort(order[pretext.public_examples :])
    rest = _Split(
        table=train.table.take(kept),
        content=Images(pixels=content.pixels[kept]),
        keys=train.keys[kept],
    )
    return content.pixels[public], rest


def _owners(
    shared: SharedRecipe, stream: Stream, train: _Split, test: _Split
) -> tuple[Longs, Longs]:
    """The client of every training and every test example."""
    pools = _pool(shared, stream, train, stream.train), _pool(shared, stream, test, stream.test)
    return deal(shared.partition, shared.seed, shared.num_clients, *pools)


def _pool(shared: SharedRecipe, stream: Stream, split: _Split, tasks: Longs) -> Pool:
    column, dealt_by = _label_column(shared), None
    if shared.partition.kind == "column" and shared.partition.column:
        dealt_by = split.table.texts(shared.partition.column)
    strata = split.table.texts(column) if column else [stream.tasks[task].name for task in tasks]
    return Pool(keys=split.keys, strata=strata, values=dealt_by)


def _encoded(
    shared: SharedRecipe, stream: Stream, split: _Split, tasks: Longs, cache_folder: Path
) -> Encoded:
    column = _label_column(shared)
    labels = np.full(len(split.table), -1, dtype=np.int64)
    if column is not None:
        place = {label: index for index, label in enumerate(label_names(stream.tasks))}
        labels[:] = [place[label] for label in split.table.texts(column)]
    return Encoded(labels=labels, tasks=tasks, inputs=split.content.inputs(cache_folder))


def _digest(stream: Stream, train: _Split, test: _Split) -> str:
    tasks = json.dumps([asdict(task) for task in stream.tasks]).encode()
    return hashlib.sha256(tasks + train.keys.tobytes() + b"|" + test.keys.tobytes()).hexdigest()
