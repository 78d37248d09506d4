"""Replies that came before their turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from strategies.errors import StoreError
from strategies.types import FailureReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What there is instead of an answer, and why."""

    reason: FailureReason
    detail: str


@dataclass(frozen=True, slots=True)
class Spool:
    """Answers by place, in files of ``folder``; each with the seconds it took."""

    folder: Path
    waiting: dict[int, tuple[Refusal | None, float]] = field(default_factory=dict)

    def put(self, index: int, answer: bytes | Refusal, seconds: float) -> None:
        """Keep ``answer`` until it is taken.

        Raises: StoreError if the disk does not take it.
        """
        if isinstance(answer, bytes):
            try:
                (self.folder / str(index)).write_bytes(answer)
            except OSError as error:
                raise StoreError(
                    f"a reply of {len(answer)} bytes cannot be kept in {self.folder}: "
                    f"{error.strerror}; free space there or set TMPDIR, then resume"
                ) from error
            self.waiting[index] = (None, seconds)
        else:
            self.waiting[index] = (answer, seconds)

    def take(self, index: int) -> tuple[bytes | Refusal, float] | None:
        """The answer at ``index``, which is gone from here then; None if it is not there yet."""
        if index not in self.waiting:
            return None
        refusal, seconds = self.waiting.pop(index)
        if refusal:
            return refusal, seconds
        path = self.folder / str(index)
        content = path.read_bytes()
        path.unlink()
        return content, seconds
