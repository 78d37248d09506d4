"""Token sequences end to end in flat arrays, made once and kept on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clients.archives import DAMAGED, read_arrays
from clients.data.tokenizer import Ids, Tokenizer
from strategies.errors import DataError

log = logging.getLogger(__name__)

FORMAT: Final = "tokens-1"
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """``n`` sequences: the i-th is ``flat[offsets[i]:offsets[i + 1]]``.

    ``types`` lies parallel to ``flat``.  ``prompt_lengths`` (n,) counts tokens before a completion,
    0 without completions.  ``num_truncated`` sequences lost tokens.
    """

    flat: Ints
    offsets: Longs
    types: Ints | None
    prompt_lengths: Longs
    num_truncated: int

    @property
    def lengths(self) -> Longs:
        return np.diff(self.offsets)

    def padded(self, flat: Ints, ids: Longs, fill: int) -> tuple[Longs, NDArray[np.bool_]]:
        """Rows of ``flat`` filled up at the right, and where they are real, (b, longest) each."""
        starts, lengths = self.offsets[ids], self.lengths[ids]
        columns = np.arange(lengths.max(initial=0))
        real = columns < lengths[:, None]
        values = flat[np.where(real, starts[:, None] + columns, 0)].astype(np.int64)
        return np.where(real, values, fill), real

    def padded_prompts(self, ids: Longs, fill: int) -> tuple[Longs, NDArray[np.bool_]]:
        """Prompts filled up at the left, and where they are real, (b, longest) each."""
        lengths = self.prompt_lengths[ids]
        columns = np.arange(lengths.max(initial=0)) - lengths.max(initial=0)
        real = columns >= -lengths[:, None]
        ends = self.offsets[ids] + lengths
        values = self.flat[np.where(real, ends[:, None] + columns, 0)].astype(np.int64)
        return np.where(real, values, fill), real

    def prompt(self, index: int) -> Ints:
        """Tokens before the completion, (t,)."""
        return self.flat[self.offsets[index] :][: self.prompt_lengths[index]]

    def completion(self, index: int) -> Ints:
        """Tokens after the prompt, (t,)."""
        return self.flat[self.offsets[index] + self.prompt_lengths[index] : self.offsets[index + 1]]


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> Tokens:
    """Texts as one sequence each, at most ``max_length`` long."""
    ids, types, num_truncated = tokenizer.encode(texts, pairs, max_length)
    return Tokens(
        flat=_flat(ids),
        offsets=_offsets(ids),
        types=None if types is None else _flat(types),
        prompt_lengths=np.zeros(len(ids), dtype=np.int64),
        num_truncated=num_truncated,
    )


def encode_completions(
    tokenizer: Tokenizer, prompts: list[Ids], completions: list[Ids], max_length: int
) -> Tokens:
    """Prompt, completion and the end token, at most ``max_length`` long.

    The completion is kept: the prompt loses tokens at its left, save a start token.  Only a
    completion that leaves no room for a single token of prompt is cut itself, at its right.
    """
    fitted = [
        _fit(prompt or [tokenizer.start_id], [*completion, tokenizer.eos_id], max_length, tokenizer)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    rows = [[*prompt, *completion] for prompt, completion, _ in fitted]
    return Tokens(
        flat=_flat(rows),
        offsets=_offsets(rows),
        types=None,
        prompt_lengths=np.array([len(prompt) for prompt, _, _ in fitted], dtype=np.int64),
        num_truncated=sum(cut for _, _, cut in fitted),
    )


def _fit(
    prompt: Ids, completion: Ids, max_length: int, tokenizer: Tokenizer
) -> tuple[Ids, Ids, bool]:
    if len(prompt) + len(completion) <= max_length:
        return prompt, completion, False
    completion = completion[: max(max_length - 1, 1)]
    room = max(max_length - len(completion), 1)
    start = prompt[:1] if prompt[0] == tokenizer.start_id and room > 1 else []
    return start + prompt[len(prompt) - room + len(start) :], completion, True


def _flat(rows: Sequence[Ids]) -> Ints:
    return np.array([token for row in rows for token in row], dtype=np.int32)


def _offsets(rows: Sequence[Ids]) -> Longs:
    return np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)


def cache_key(*parts: str, texts: Iterable[str]) -> str:
    """Names tokens by all that decides about them: how they are made, and of what."""
    digest = hashlib.sha256()
    for part in (FORMAT, *parts, *texts):
        raw = part.encode("utf-8", "surrogatepass")
        # The length keeps ("a", "bc") and ("ab", "c") apart.
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]


def cached(folder: Path, key: str, make: Callable[[], Tokens]) -> Tokens:
    """The tokens of that key, made and kept if they are not there yet.

    Any number of processes may ask at once: each writes a file of its own and renames it, so a
    reader sees a whole file or none.  A damaged file is made again.
    """
    path = folder / "tokens" / f"{key}.npz"
    if path.exists():
        try:
            return _read(path)
        except DAMAGED as error:
            log.warning("cache file %s is damaged (%s); tokenising again", path, error)
    tokens = make()
    _write(path, tokens)
    return tokens


def _read(path: Path) -> Tokens:
    stored = read_arrays(path)
    return Tokens(
        flat=stored["flat"],
        offsets=stored["offsets"],
        types=stored["types"] if len(stored["types"]) else None,
        prompt_lengths=stored["prompt_lengths"],
        num_truncated=int(stored["num_truncated"]),
    )


def _write(path: Path, tokens: Tokens) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    except OSError as error:
        raise DataError(f"cannot write the token cache in {path.parent}: {error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                flat=tokens.flat,
                offsets=tokens.offsets,
                types=np.zeros(0, np.int32) if tokens.types is None else tokens.types,
                prompt_lengths=tokens.prompt_lengths,
                num_truncated=np.array(tokens.num_truncated),
            )
        Path(partial).replace(path)
    except OSError as error:
        raise DataError(f"cannot write the token cache {path}: {error}; free some space") from error
    finally:
        Path(partial).unlink(missing_ok=True)
