"""The tokenizers of transformers checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clients.data.tokenizer import BYTES, ByteTokenizer, Ids, Message, Tokenizer, tagged
from strategies.errors import ModelError
from strategies.recipe import ModelRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_tokenizer(recipe: ModelRecipe) -> Tokenizer:
    """The recipe's tokenizer, else its checkpoint's own.

    Raises: ModelError for one that is not there.
    """
    if recipe.tokenizer == BYTES:
        return ByteTokenizer()
    if recipe.tokenizer is None and recipe.name == "from-config":
        raise ModelError(
            'model.tokenizer: found nothing, a "from-config" model expected one; '
            f'name a checkpoint, or "{BYTES}", which needs no file'
        )
    name = recipe.tokenizer or recipe.name
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer at {name!r} ({error}); expected a checkpoint's folder or hub name; "
            "correct model.tokenizer or model.name"
        ) from error
    return CheckpointTokenizer(loaded)


@dataclass(frozen=True, slots=True)
class CheckpointTokenizer:
    """A tokenizer of the transformers library, as loaded from its files."""

    loaded: PreTrainedTokenizerBase

    @property
    def identity(self) -> str:
        """A digest of everything that decides about tokens, wherever the files lie."""
        backend = getattr(self.loaded, "backend_tokenizer", None)  # only fast tokenizers have one
        rules = backend.to_str() if backend else json.dumps(self.loaded.get_vocab(), sort_keys=True)
        special = json.dumps(self.loaded.special_tokens_map, sort_keys=True, default=str)
        text = "\n".join([type(self.loaded).__name__, special, rules])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return len(self.loaded)

    @property
    def pad_id(self) -> int:
        """Padding is masked, so any token will do where the tokenizer has none for it."""
        known = (self.loaded.pad_token_id, self.loaded.eos_token_id, 0)
        return int(next(token for token in known if token is not None))

    @property
    def start_id(self) -> int:
        return self.eos_id if self.loaded.bos_token_id is None else int(self.loaded.bos_token_id)

    @property
    def eos_id(self) -> int:
        if self.loaded.eos_token_id is None:
            raise ModelError(
                f"the tokenizer {self.loaded.name_or_path!r} has no end-of-sequence token, "
                "expected one to end completions with; choose a tokenizer made for a causal LM"
            )
        return int(self.loaded.eos_token_id)

    @property
    def has_chat_template(self) -> bool:
        return bool(self.loaded.chat_template)

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> tuple[list[Ids], list[Ids] | None, int]:
        encoded = self.loaded(list(texts), _listed(pairs), verbose=False)
        ids: list[Ids] = encoded["input_ids"]
        types: list[Ids] | None = encoded.get("token_type_ids")
        # Only the tokenizer knows how to cut and keep its special tokens; few texts need it.
        long = [index for index, tokens in enumerate(ids) if len(tokens) > max_length]
        for index in long:
            pair = None if pairs is None else pairs[index]
            cut = self.loaded(texts[index], pair, truncation=True, max_length=max_length)
            ids[index] = cut["input_ids"]
            if types is not None:
                types[index] = cut["token_type_ids"]
        return ids, types, len(long)

    def encode_prompts(self, texts: Sequence[str]) -> list[Ids]:
        rows: list[Ids] = self.loaded(list(texts), verbose=False)["input_ids"]
        # Some tokenizers close every text; a prompt goes on.
        return [row[:-1] if row and row[-1] == self.eos_id else row for row in rows]

    def encode_plain(self, texts: Sequence[str]) -> list[Ids]:
        rows: list[Ids] = self.loaded(list(texts), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return rows

    def chat_prompt(self, messages: Sequence[Message]) -> str:
        if not self.has_chat_template:
            return tagged(messages)
        turns = [dict(message) for message in messages]
        return str(
            self.loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.loaded.decode(list(ids), skip_special_tokens=True))


def _listed(texts: Sequence[str] | None) -> list[str] | None:
    return None if texts is None else list(texts)
