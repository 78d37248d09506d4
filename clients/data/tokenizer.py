"""Text to token ids: what a tokenizer must do, and one that needs no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

Ids = list[int]
Message = Mapping[str, str]
PAD, BOS, EOS, NUM_SPECIAL = 0, 1, 2, 3
BYTES: Final = "bytes"


class Tokenizer(Protocol):
    """What encoding needs of a tokenizer.  ``identity`` differs where tokens would."""

    @property
    def identity(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def start_id(self) -> int:
        """Stands in for a prompt without any tokens."""
        ...

    @property
    def eos_id(self) -> int:
        """Ends a completion.

        Raises: ModelError if the tokenizer has no such token.
        """
        ...

    @property
    def has_chat_template(self) -> bool: ...

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> tuple[list[Ids], list[Ids] | None, int]:
        """Ids with special tokens, token types if the tokenizer has any, and how many were cut."""
        ...

    def encode_prompts(self, texts: Sequence[str]) -> list[Ids]:
        """Ids with what the tokenizer puts before a text, and nothing after it."""
        ...

    def encode_plain(self, texts: Sequence[str]) -> list[Ids]:
        """Ids without special tokens of the tokenizer's own."""
        ...

    def chat_prompt(self, messages: Sequence[Message]) -> str:
        """The messages as one text that an assistant's turn would continue."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        ...


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """UTF-8 bytes as tokens: 0 pad, 1 begin, 2 end, then the 256 byte values."""

    identity: str = "bytes-1"
    vocab_size: int = NUM_SPECIAL + 256
    pad_id: int = PAD
    start_id: int = BOS
    eos_id: int = EOS
    has_chat_template: bool = False

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> tuple[list[Ids], None, int]:
        """``begin text end``, or ``begin text end pair end``; what is too long loses its tail."""
        bodies = self.encode_plain(texts)
        if pairs is not None:
            seconds = self.encode_plain(pairs)
            bodies = [[*a, EOS, *b] for a, b in zip(bodies, seconds, strict=True)]
        room = max(max_length - 2, 0)
        ids = [[BOS, *body[:room], EOS] for body in bodies]
        return ids, None, sum(len(body) > room for body in bodies)

    def encode_prompts(self, texts: Sequence[str]) -> list[Ids]:
        return [[BOS, *ids] for ids in self.encode_plain(texts)]

    def encode_plain(self, texts: Sequence[str]) -> list[Ids]:
        return [[byte + NUM_SPECIAL for byte in text.encode()] for text in texts]

    def chat_prompt(self, messages: Sequence[Message]) -> str:
        return tagged(messages)

    def decode(self, ids: Sequence[int]) -> str:
        kept = bytes(i - NUM_SPECIAL for i in ids if NUM_SPECIAL <= i < self.vocab_size)
        return kept.decode(errors="replace")


def tagged(messages: Sequence[Message]) -> str:
    """Our chat format where a tokenizer brings none.

    Every turn is ``<|role|>``, a line break, the content and a line break; the assistant's tag
    comes last.
    """
    turns = [f"<|{message['role']}|>\n{message['content']}\n" for message in messages]
    return "".join(turns) + "<|assistant|>\n"
