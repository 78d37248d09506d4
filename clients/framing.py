"""Messages of any size over gRPC: which call carries them, and how they are cut and joined.

Imports no torch: both ends use it, and one of them must start quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Final, Literal

from strategies.errors import PerennialError, WireError
from strategies.wire import fields_of, kind_of

SERVICE: Final = "perennial.trainer.v1.Trainer"
CHUNK_BYTES: Final = 2 * 2**20  # half of what gRPC takes in one piece
Call = Literal["Describe", "Probe", "Train", "Evaluate"]


class FramingError(PerennialError):
    """A stream of chunks that is not the message it was announced as, or too large."""


def call_for(message: bytes) -> Call:
    """The call that carries a request.

    Raises: WireError if it is no request.
    """
    kind = kind_of(message)
    if kind == "recipe":
        return "Describe"
    if kind != "assignment":
        raise WireError(f"message of kind {kind!r}, expected 'recipe' or 'assignment'")
    fields = fields_of(message)
    if fields.get("probe"):
        return "Probe"
    return "Train" if fields.get("work") else "Evaluate"


def cut(message: bytes) -> Iterator[bytes]:
    """The message's bytes in chunks; one chunk is copied at a time."""
    view = memoryview(message)
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def joined(total_bytes: int, chunks: Iterable[bytes], *, limit_bytes: int) -> bytes:
    """The message of ``chunks``; room grows with what comes, not with what is announced.

    At most an eighth more than has come is taken, and nothing is copied at the end.
    Raises: FramingError if it is announced larger than ``limit_bytes``, if there is no room, if a
    chunk is empty, or if it is not as large as announced.
    """
    if total_bytes > limit_bytes:
        raise FramingError(
            f"a message of {total_bytes} bytes was announced, at most {limit_bytes} are taken; "
            "raise max_message_bytes in the settings"
        )
    buffer = BytesIO()
    for chunk in chunks:
        if not chunk:
            raise FramingError("an empty chunk")
        if buffer.tell() + len(chunk) > total_bytes:
            raise FramingError(f"more than the {total_bytes} bytes that were announced")
        try:
            buffer.write(chunk)
        except MemoryError:
            raise FramingError(f"no memory for a message of {total_bytes} bytes") from None
    if buffer.tell() != total_bytes:
        raise FramingError(f"{buffer.tell()} bytes of {total_bytes} that were announced")
    return buffer.getvalue()  # the buffer itself, cut to its size
