"""The lower part of a model, where nothing is trained: computed once per example, not every step.

A *border* is the number of blocks below it; one more than there are stands for all but the head,
whose inputs are then pooled features.  What comes out at a border is a function of the lower part's
own values and of the examples that are computed together, so examples go through it in chunks that
depend on nothing else: whether a chunk is still there or computed again changes no bit.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import pad_sequence

from strategies.fitting import MOST_KEPT_BYTES
from strategies.types import HEAD, LORA_A, GroupName, GroupSpec, ModelDescription, Tensors

if TYPE_CHECKING:
    from clients.data import Encoded
    from clients.model.adapters import AdaptedModel
    from strategies.protocols import ExampleIds

BELOW: Final = "below"
"""Among a model's inputs: what came out at the border, (n, t, d) or, pooled, (n, d)."""
BORDER: Final = "border"
"""Among a model's inputs, beside ``BELOW``: the border, a number on the host."""
# Of the largest answer, what rounding may make of the same computation, at any precision.
_MOST_APART: Final = 1e-3
_NOT_FED: Final = ("labels", BELOW, BORDER)
_BLOCK = re.compile(r"^(?P<list>.*?)(?P<number>\d+)(\.|$)")


@dataclass(slots=True)
class Kept:
    """Chunks that were computed, those used last within ``most_bytes``.

    ``num_computed`` counts the examples that went through a lower part; ``widths`` are the bytes a
    token takes at each border that was tried or, of images and features, an example; 0 where the
    model cannot be entered.
    """

    most_bytes: int = MOST_KEPT_BYTES
    widths: dict[int, int] = field(default_factory=dict)
    num_computed: int = 0
    held_bytes: int = 0
    _chunks: OrderedDict[Hashable, list[Tensor]] = field(default_factory=OrderedDict)

    def get(self, key: Hashable) -> list[Tensor] | None:
        """A chunk's rows, if they are there."""
        if key in self._chunks:
            self._chunks.move_to_end(key)
        return self._chunks.get(key)

    def put(self, key: Hashable, rows: list[Tensor]) -> None:
        """Keep a chunk, and let go of those that were not used for longest."""
        self.num_computed += len(rows)
        self._chunks[key] = rows
        self.held_bytes += _bytes_of(rows)
        while self.held_bytes > self.most_bytes:
            self.held_bytes -= _bytes_of(self._chunks.popitem(last=False)[1])

    def clear(self) -> None:
        """Let go of all of them."""
        self._chunks.clear()
        self.held_bytes = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lower:
    """The lower part of a model in one state, on the examples of ``chunks``.

    ``values`` names the lower part's own values; ``places`` says of each example in which chunk it
    is and where.
    """

    model: AdaptedModel
    border: int
    values: str
    split: Encoded
    chunks: Sequence[ExampleIds]
    places: Mapping[int, tuple[int, int]]

    @classmethod
    def of(
        cls,
        model: AdaptedModel,
        split: Encoded,
        chunks: Sequence[ExampleIds],
        *,
        border: int,
        values: str = "",
    ) -> Lower | None:
        """None where the model cannot be entered at ``border``, or the examples are not to be kept.

        That depends on the model, on the examples and on ``model.kept.most_bytes`` alone.
        ``values`` "" stands for the base's own.
        """
        chunks = [chunk for chunk in chunks if len(chunk)]
        if not border or not chunks:
            return None
        if border not in model.kept.widths:
            model.kept.widths[border] = _width(model, split, chunks[0][:1], border)
        width, pooled = model.kept.widths[border], border > model.base.description.num_blocks
        lengths = (len(c) if pooled else int(split.lengths[c].sum()) for c in chunks)
        if not width or width * sum(lengths) > model.kept.most_bytes:
            return None
        places = {
            example: (index, row)
            for index, chunk in enumerate(chunks)
            for row, example in enumerate(chunk.tolist())
        }
        return cls(
            model=model, border=border, values=values, split=split, chunks=chunks, places=places
        )

    def inputs(self, ids: ExampleIds) -> dict[str, Tensor]:
        """What the model is given besides the examples themselves to start at the border.

        Padded to the longest of ``ids``; nothing if not all of them are in the chunks.
        """
        places = [self.places.get(example) for example in ids.tolist()]
        found = [place for place in places if place is not None]
        if len(found) < len(places):
            return {}
        rows = {index: self._rows(index) for index in dict.fromkeys(i for i, _ in found)}
        parts = [rows[index][row] for index, row in found]
        below = torch.stack(parts) if parts[0].dim() == 1 else pad_sequence(parts, batch_first=True)
        return {BELOW: below, BORDER: torch.tensor(self.border)}

    def _rows(self, index: int) -> list[Tensor]:
        ids, kept = self.chunks[index], self.model.kept
        key = (self.values, self.border, self.split, ids.tobytes())
        rows = kept.get(key)
        if rows is None:
            inputs = self.model.device.inputs(self.split.collate(ids))
            with self.model.in_evaluation():
                rows = list(self.model.below(inputs, self.border))
            if "attention_mask" in inputs and rows[0].dim() > 1:
                lengths = self.split.lengths[ids].tolist()
                rows = [row[:length].clone() for row, length in zip(rows, lengths, strict=True)]
            kept.put(key, rows)
        return rows


def border_below(description: ModelDescription, groups: Collection[GroupName]) -> int:
    """The highest border that has none of ``groups`` below it, 0 if there is none."""
    borders = [
        _above(spec, index, description)
        for index, spec in enumerate(description.groups)
        if spec.name in groups
    ]
    return min(borders, default=description.num_blocks + 1)


def _above(spec: GroupSpec, index: int, description: ModelDescription) -> int:
    """The highest border below a group."""
    if spec.name == HEAD:
        return description.num_blocks + 1
    if spec.block is not None:
        return spec.block
    blocks = [i for i, each in enumerate(description.groups) if each.block is not None]
    return description.num_blocks if blocks and index > blocks[-1] else 0


def values_below(description: ModelDescription, border: int, tensors: Tensors, scale: float) -> str:
    """Names what a state makes of the lower part; "" where that is the base's own."""
    lower = {
        spec.name
        for index, spec in enumerate(description.groups)
        if _above(spec, index, description) < border
    }
    moved = touched(tensors) & lower
    if not moved:
        return ""
    digest = hashlib.sha256(f"{scale}".encode())
    for key in sorted(key for key in tensors if key.group in moved):
        digest.update(f"{key.text}{tensors[key].shape}".encode())
        digest.update(tensors[key].tobytes())
    return digest.hexdigest()


def touched(tensors: Tensors) -> frozenset[GroupName]:
    """The groups a state makes anything else of than the base: all but pairs whose B is zero."""
    moving = (key for key, value in tensors.items() if key.part != LORA_A and value.any())
    return frozenset(key.group for key in moving)


def blocks_of(module: nn.Module, description: ModelDescription) -> list[nn.Module]:
    """The model's blocks in the order of the forward pass; none if they are not in one list."""
    found = [_BLOCK.match(g.name) for g in description.groups if g.block is not None]
    lists = {match["list"] for match in found if match}
    if len(lists) != 1:
        return []
    (name,) = lists
    return [module.get_submodule(f"{name}{number}") for number in range(description.num_blocks)]


def _width(model: AdaptedModel, split: Encoded, ids: ExampleIds, border: int) -> int:
    """Bytes of a token at a border, of images and features those of an example; 0 for no border.

    A border it is if nothing below it is random while training, and if the model, entered there
    with what came out there, answers as it does by itself.
    """
    description, inputs = model.base.description, model.device.inputs(split.collate(ids))
    pooled = border > description.num_blocks
    if not (model.pools if pooled else blocks_of(model.module, description)):
        return 0
    if any(isinstance(part, _BatchNorm) for part in model.module.modules()) or _draws(
        model, inputs, border
    ):
        return 0
    with model.in_evaluation(), torch.no_grad():
        below = model.below(inputs, border)
        if "attention_mask" in inputs and not pooled and below.shape[1] != split.lengths[ids[0]]:
            return 0
        answer = model.features if model.pools else model.logits  # a fresh head may answer 0 to all
        wanted = answer(inputs)
        gap = wanted - answer({**inputs, BELOW: below, BORDER: torch.tensor(border)})
        if gap.abs().max() > _MOST_APART * wanted.abs().max():
            return 0
    return below.nbytes // (1 if pooled else int(split.lengths[ids[0]]))


def _draws(model: AdaptedModel, inputs: Mapping[str, Tensor], border: int) -> bool:
    """Whether the lower part draws random numbers while training, as dropout does."""
    mode, gpus = model.module.training, [0] if model.device.on_gpu else []
    with torch.random.fork_rng(devices=gpus):
        model.module.train()
        before = _random_states(model)
        model.below(inputs, border)
        model.module.train(mode)
        pairs = zip(before, _random_states(model), strict=True)
        return not all(torch.equal(one, other) for one, other in pairs)


def _random_states(model: AdaptedModel) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if model.device.on_gpu else states


class _Reached(Exception):  # noqa: N818 - no error
    """Carries a block's output past the rest of the model."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def output_of(block: nn.Module, forward: Callable[[], object]) -> Tensor:
    """What comes out of ``block`` in ``forward``, of which no more is computed."""

    def stop(module: nn.Module, inputs: object, output: Tensor) -> None:
        raise _Reached(output)

    handle = block.register_forward_hook(stop)
    try:
        forward()
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise RuntimeError(f"{type(block).__name__} took no part in the forward pass")


@contextmanager
def entered(
    module: nn.Module, description: ModelDescription, inputs: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """What ``module`` is to be given of ``inputs``; while open it starts where they say."""
    fed = {name: value for name, value in inputs.items() if name not in _NOT_FED}
    passed = list[nn.Module]()
    if BORDER in inputs:
        passed = blocks_of(module, description)[: int(inputs[BORDER])]
    for block in passed:
        # On the instance, under nn.Module's own call, as the adapters' forward is.
        block.__dict__["forward"] = lambda *_, **__: inputs[BELOW]
    try:
        yield fed
    finally:
        for block in passed:
            del block.__dict__["forward"]


def _bytes_of(rows: Sequence[Tensor]) -> int:
    return sum(row.nbytes for row in rows)
