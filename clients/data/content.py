"""What an example is made of, by model task, before it becomes numbers for a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.data.batches import CompletionInputs, ImageInputs, Inputs, TextInputs
from clients.data.encoding import Tokens, cache_key, cached, encode_completions, encode_texts
from clients.data.images import read_images
from clients.data.table import Table
from clients.data.tokenizer import Message, Tokenizer
from strategies.errors import DataError
from strategies.recipe import DataRecipe, SharedRecipe


class Content(Protocol):
    """All examples of a split."""

    def raw(self, index: int) -> bytes:
        """One example's content, for its key."""
        ...

    def inputs(self, cache_folder: Path) -> Inputs:
        """The model's inputs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """Pictures (n, c, h, w)."""

    pixels: NDArray[np.float32]

    def raw(self, index: int) -> bytes:
        return bytes(self.pixels[index].tobytes())

    def inputs(self, cache_folder: Path) -> Inputs:
        return ImageInputs(pixels=self.pixels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Texts:
    """Texts, or pairs of texts, to be classified."""

    table: Table
    texts: Sequence[str]
    pairs: Sequence[str] | None
    tokenizer: Tokenizer
    max_length: int

    def raw(self, index: int) -> bytes:
        pair = None if self.pairs is None else self.pairs[index]
        return json.dumps([self.texts[index], pair]).encode()

    def inputs(self, cache_folder: Path) -> Inputs:
        key = cache_key(
            "texts" if self.pairs is None else "pairs",
            self.tokenizer.identity,
            str(self.max_length),
            texts=[*self.texts, *(self.pairs or ())],
        )
        tokens = cached(cache_folder, key, self._encode)
        if not tokens.lengths.all():
            where = self.table.where(int(np.argmin(tokens.lengths)))
            raise DataError(f"{where}: the text gives no tokens, expected some; remove the example")
        return TextInputs(tokens=tokens, pad_id=self.tokenizer.pad_id)

    def _encode(self) -> Tokens:
        return encode_texts(self.tokenizer, self.texts, self.pairs, self.max_length)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completions:
    """Prompts and what is to follow; ``templated`` prompts carry their special tokens as text."""

    prompts: Sequence[str]
    completions: Sequence[str]
    templated: bool
    tokenizer: Tokenizer
    max_length: int

    def raw(self, index: int) -> bytes:
        return json.dumps([self.prompts[index], self.completions[index]]).encode()

    def inputs(self, cache_folder: Path) -> Inputs:
        key = cache_key(
            "templated" if self.templated else "completions",
            self.tokenizer.identity,
            str(self.max_length),
            texts=[*self.prompts, *self.completions],
        )
        tokens = cached(cache_folder, key, self._encode)
        return CompletionInputs(tokens=tokens, tokenizer=self.tokenizer)

    def _encode(self) -> Tokens:
        encode = self.tokenizer.encode_plain if self.templated else self.tokenizer.encode_prompts
        completions = self.tokenizer.encode_plain(self.completions)
        return encode_completions(
            self.tokenizer, encode(self.prompts), completions, self.max_length
        )


def columns_of(shared: SharedRecipe) -> tuple[str, ...]:
    """Names of all columns the recipe reads."""
    data = shared.data
    own: list[str | None]
    match shared.model.task:
        case "image-classification":
            own = [data.image_column, data.label_column]
        case "sequence-classification":
            own = [data.text_column, data.text_pair_column, data.label_column]
        case "causal-lm":
            pair = [data.prompt_column, data.completion_column]
            own = [data.messages_column] if data.messages_column else [*pair]
    dealt_by = shared.partition.column if shared.partition.kind == "column" else None
    return tuple(name for name in (*own, shared.stream.task_column, dealt_by) if name)


def read_content(shared: SharedRecipe, table: Table, tokenizer: Tokenizer | None) -> Content:
    """The split's content; a ``tokenizer`` comes with every task but images.

    Raises: DataError for columns that are missing or hold something else.
    """
    data, max_length = shared.data, shared.model.max_length
    if tokenizer is None:
        return Images(pixels=read_images(table, data.image_column))
    if shared.model.task == "causal-lm":
        return _completions(data, table, tokenizer, max_length)
    pair = data.text_pair_column
    return Texts(
        table=table,
        texts=table.texts(data.text_column),
        pairs=None if pair is None else table.texts(pair),
        tokenizer=tokenizer,
        max_length=max_length,
    )


def _completions(
    data: DataRecipe, table: Table, tokenizer: Tokenizer, max_length: int
) -> Completions:
    if data.messages_column is None:
        prompts, completions = table.texts(data.prompt_column), table.texts(data.completion_column)
    else:
        cells = table.column(data.messages_column)
        chats = [_last_turn(cell, table.where(index)) for index, cell in enumerate(cells)]
        prompts = [tokenizer.chat_prompt(before) for before, _ in chats]
        completions = [answer for _, answer in chats]
    return Completions(
        prompts=prompts,
        completions=completions,
        templated=data.messages_column is not None and tokenizer.has_chat_template,
        tokenizer=tokenizer,
        max_length=max_length,
    )


def _last_turn(cell: Any, where: str) -> tuple[list[Message], str]:  # Any: whatever a file may hold
    """The messages before the assistant's last turn, and that turn; what follows it is dropped."""
    if not isinstance(cell, list) or not all(_is_message(turn) for turn in cell):
        raise DataError(
            f"{where}: expected messages, a list of {{role, content}} with text in both"
        )
    last = max((i for i, turn in enumerate(cell) if turn["role"] == "assistant"), default=0)
    if last == 0:
        raise DataError(f"{where}: expected an assistant's turn that answers something before it")
    return cell[:last], cell[last]["content"]


def _is_message(turn: Any) -> bool:  # Any: whatever a file may hold
    return isinstance(turn, dict) and all(isinstance(turn.get(k), str) for k in ("role", "content"))


def example_keys(content: Content, columns: Sequence[Sequence[str]]) -> NDArray[np.uint64]:
    """One key per example, (n,), of its content and of its cells in ``columns``."""
    keys = np.empty(len(columns[0]), dtype=np.uint64)
    for index, cells in enumerate(zip(*columns, strict=True)):
        raw = content.raw(index)
        head = json.dumps([len(raw), *cells]).encode()
        digest = hashlib.blake2b(head + raw, digest_size=8).digest()
        keys[index] = int.from_bytes(digest, "little")
    return keys
