"""A recipe's data: tasks, encoded examples, and the shard of every client."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

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
        train = self._ids(self.train, self.train_owners == client_index)
        classes = (np.unique(self.train.labels[ids]) for ids in train)
        return Shard(
            train=train,
            test=self._ids(self.test, self.test_owners == client_index),
            train_classes=tuple(found[found >= 0] for found in classes),
        )

    def _ids(self, split: Encoded, own: NDArray[np.bool_]) -> tuple[Longs, ...]:
        return tuple(
            np.flatnonzero(own & (split.tasks == task)).astype(np.int64)
            for task in range(len(self.tasks))
        )
