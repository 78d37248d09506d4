"""A recipe's data: tasks, encoded examples, and the shard of every client."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clients.data.batches import Encoded
from clients.data.encoding import Longs
from clients.data.tokenizer import Tokenizer
from strategies.errors import DataError
from strategies.types import TaskInfo


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shard:
    """One client's examples: ids into the data set's splits, ascending, one array per task."""

    train: tuple[Longs, ...]
    test: tuple[Longs, ...]
    train_classes: tuple[Longs, ...]

    def train_ids(self, task: int) -> Longs:
        return self.train[task]

    def test_ids(self, task: int) -> Longs:
        return self.test[task]

    def classes_seen(self, tasks: Collection[int]) -> Longs:
        """Classes this client has a training example of in these tasks, ascending."""
        found = [self.train_classes[task] for task in tasks]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))

    @property
    def num_train(self) -> tuple[int, ...]:
        """Training examples per task."""
        return tuple(len(ids) for ids in self.train)

    @property
    def num_test(self) -> tuple[int, ...]:
        """Held-out examples per task."""
        return tuple(len(ids) for ids in self.test)


@dataclass(frozen=True, slots=True, eq=False)
class _Holdings:
    """What everybody has of a split, sorted once: a shard costs what is in it.

    ``rows`` (n,) are ids by client, then task, ascending; ``starts`` (clients · tasks + 1,) is
    where those of each client and task begin.
    """

    rows: Longs
    starts: Longs
    num_tasks: int

    @classmethod
    def of(cls, owners: Longs, tasks: Longs, num_clients: int, num_tasks: int) -> _Holdings:
        known = np.flatnonzero((tasks >= 0) & (tasks < num_tasks) & (owners >= 0))
        places = owners[known] * num_tasks + tasks[known]
        counts = np.bincount(places, minlength=num_clients * num_tasks)
        return cls(
            rows=known[np.argsort(places, kind="stable")].astype(np.int64),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            num_tasks=num_tasks,
        )

    def of_client(self, index: int) -> tuple[Longs, ...]:
        """Its ids, one array per task."""
        first = index * self.num_tasks
        bounds = self.starts[first : first + self.num_tasks + 1]
        return tuple(self.rows[a:b] for a, b in pairwise(bounds.tolist()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Everything a process needs of the data, for all clients it serves.

    A class's index is its place in ``label_names``.  ``public_images`` (n, c, h, w) are in no
    client's shard.  ``digest`` names the content and the tasks.  ``*_owners`` (n,) are client
    indices.
    """

    tasks: tuple[TaskInfo, ...]
    label_names: tuple[str, ...]
    train: Encoded
    test: Encoded
    train_owners: Longs
    test_owners: Longs
    num_clients: int
    tokenizer: Tokenizer | None
    public_images: NDArray[np.float32] | None
    digest: str
    _train: _Holdings = field(init=False)
    _test: _Holdings = field(init=False)

    def __post_init__(self) -> None:
        for name, split, owners in (
            ("_train", self.train, self.train_owners),
            ("_test", self.test, self.test_owners),
        ):
            held = _Holdings.of(owners, split.tasks, self.num_clients, len(self.tasks))
            object.__setattr__(self, name, held)

    @property
    def vocab_size(self) -> int | None:
        """Of the tokenizer; None for images."""
        return self.tokenizer.vocab_size if self.tokenizer else None

    @property
    def num_truncated(self) -> int:
        """Examples of both splits that were longer than ``max_length``."""
        return self.train.inputs.num_truncated + self.test.inputs.num_truncated

    def at_most(self, count: int) -> Dataset:
        """The same data, of which no more than ``count`` examples are looked at together."""
        train = replace(self.train, most_at_once=count)
        return replace(self, train=train, test=replace(self.test, most_at_once=count))

    def shard(self, client_index: int) -> Shard:
        """The examples of one client; there may be none.

        Raises: DataError for a client that does not exist.
        """
        if not 0 <= client_index < self.num_clients:
            raise DataError(f"no client {client_index}; expected 0..{self.num_clients - 1}")
        train = self._train.of_client(client_index)
        classes = (np.unique(self.train.labels[ids]) for ids in train)
        return Shard(
            train=train,
            test=self._test.of_client(client_index),
            train_classes=tuple(found[found >= 0] for found in classes),
        )
