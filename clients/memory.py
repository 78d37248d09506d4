"""What a training step holds in memory for its backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class SavedBytes:
    """Counts the storages autograd keeps for backward, each once, without the model's own."""

    known: set[int]
    found: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of the storages kept so far."""
        return sum(self.found.values())

    def note(self, tensor: Tensor) -> Tensor:
        """Book a tensor that autograd saves."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.found[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def saved_for_backward(parameters: Iterable[Tensor]) -> Iterator[SavedBytes]:
    """While open, counts what forward passes keep besides ``parameters``."""
    counter = SavedBytes({p.untyped_storage().data_ptr() for p in parameters})
    with torch.autograd.graph.saved_tensors_hooks(counter.note, lambda tensor: tensor):
        yield counter
