"""Encoded examples, by id, ready for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.data.encoding import Longs, Tokens
from clients.data.tokenizer import Tokenizer
from strategies.errors import DataError

Batch = dict[str, NDArray[Any]]
IGNORED = -100  # a label that takes no part in a loss, by torch's convention


class Inputs(Protocol):
    """What a model is given of an example."""

    @property
    def lengths(self) -> Longs:
        """What an example costs, (n,): its tokens."""
        ...

    @property
    def num_truncated(self) -> int: ...

    def collate(self, ids: Longs) -> Batch: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageInputs:
    """``pixel_values`` (b, c, h, w) float32."""

    pixels: NDArray[np.float32]
    num_truncated: int = 0

    @property
    def lengths(self) -> Longs:
        return np.ones(len(self.pixels), dtype=np.int64)

    def collate(self, ids: Longs) -> Batch:
        return {"pixel_values": self.pixels[ids]}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextInputs:
    """``input_ids``, ``attention_mask`` and, if there are any, ``token_type_ids``, (b, t)."""

    tokens: Tokens
    pad_id: int

    @property
    def lengths(self) -> Longs:
        return self.tokens.lengths

    @property
    def num_truncated(self) -> int:
        return self.tokens.num_truncated

    def collate(self, ids: Longs) -> Batch:
        values, real = self.tokens.padded(self.tokens.flat, ids, self.pad_id)
        batch: Batch = {"input_ids": values, "attention_mask": real.astype(np.int64)}
        if self.tokens.types is not None:
            batch["token_type_ids"] = self.tokens.padded(self.tokens.types, ids, 0)[0]
        return batch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompletionInputs:
    """Prompt and completion in a row; ``labels`` (b, t) are −100 outside the completion."""

    tokens: Tokens
    tokenizer: Tokenizer

    @property
    def lengths(self) -> Longs:
        return self.tokens.lengths

    @property
    def num_truncated(self) -> int:
        return self.tokens.num_truncated

    def collate(self, ids: Longs) -> Batch:
        values, real = self.tokens.padded(self.tokens.flat, ids, self.tokenizer.pad_id)
        answered = np.arange(values.shape[1]) >= self.tokens.prompt_lengths[ids][:, None]
        return {
            "input_ids": values,
            "attention_mask": real.astype(np.int64),
            "labels": np.where(real & answered, values, IGNORED),
        }

    def collate_answered(self, ids: Longs, answers: Mapping[int, Longs]) -> Batch:
        tokens = self.tokens
        rows = [(tokens.prompt(i), answers.get(i, tokens.completion(i))) for i in ids.tolist()]
        lengths = [len(prompt) + len(answer) for prompt, answer in rows]
        answered = Tokens(
            flat=np.concatenate([part for row in rows for part in row]).astype(np.int32),
            offsets=np.cumsum([0, *lengths], dtype=np.int64),
            types=None,
            prompt_lengths=tokens.prompt_lengths[ids],
            num_truncated=0,
        )
        return replace(self, tokens=answered).collate(np.arange(len(ids)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """A split as the model sees it.  An example's id is its place here.

    ``labels`` (n,) are class indices, −1 for a causal LM; ``tasks`` (n,) are task indices.
    ``most_at_once`` bounds the batches of ``bucketed``, None where memory does not.
    """

    labels: Longs
    tasks: Longs
    inputs: Inputs
    most_at_once: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Longs:
        """Tokens per example, (n,); 1 for images."""
        return self.inputs.lengths

    @property
    def tokenizer(self) -> Tokenizer:
        """What prompts and completions were encoded with.

        Raises: DataError for examples without completions.
        """
        return self._completions().tokenizer

    def collate(self, ids: Longs) -> Batch:
        """The model's inputs and ``labels`` for these examples, padded to the longest of them."""
        return {"labels": self.labels[ids], **self.inputs.collate(ids)}

    def mean_bytes(self, ids: Longs) -> float:
        """What one of these examples takes as the model's inputs, in bytes; 0 if there are none."""
        looked_at = ids[:256]
        sizes = [
            sum(a.nbytes for a in self.collate(looked_at[[i]]).values())
            for i in range(len(looked_at))
        ]
        return float(np.mean(sizes)) if sizes else 0.0

    def collate_answered(self, ids: Longs, answers: Mapping[int, Longs]) -> Batch:
        """As ``collate``, with ``answers`` in place of the completions of the examples they name.

        An answer (t,) ends with the end token, as a completion does.
        """
        return self._completions().collate_answered(ids, answers)

    def bucketed(self, ids: Longs, batch_size: int) -> list[Longs]:
        """``ids`` in batches of similar length, shortest first, so that little is padded."""
        ordered = ids[np.lexsort((ids, self.lengths[ids]))]
        size = min(batch_size, self.most_at_once or batch_size)
        return [ordered[at : at + size] for at in range(0, len(ordered), size)]

    def prompt_lengths(self, ids: Longs) -> Longs:
        """Tokens of each prompt, (n,)."""
        return self._completions().tokens.prompt_lengths[ids]

    def prompt(self, ids: Longs) -> Batch:
        """``input_ids`` and ``attention_mask`` of the prompts alone, padded at the left."""
        inputs = self._completions()
        values, real = inputs.tokens.padded_prompts(ids, inputs.tokenizer.pad_id)
        return {"input_ids": values, "attention_mask": real.astype(np.int64)}

    def completion_texts(self, ids: Longs) -> list[str]:
        """What should follow each prompt, decoded like a generated answer."""
        inputs = self._completions()
        return [inputs.tokenizer.decode(inputs.tokens.completion(i).tolist()) for i in ids]

    def decode(self, generated: Sequence[Sequence[int]] | Longs) -> list[str]:
        """Texts of generated tokens, each up to its first end token."""
        tokenizer = self.tokenizer
        rows = [[int(token) for token in row] for row in generated]
        return [
            tokenizer.decode(row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row)
            for row in rows
        ]

    def _completions(self) -> CompletionInputs:
        if not isinstance(self.inputs, CompletionInputs):
            raise DataError("only examples of a causal LM have prompts and completions")
        return self.inputs
