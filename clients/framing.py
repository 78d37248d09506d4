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
    """The message of ``chunks``, written into room made once and not copied again.

    Raises: FramingError if it is announced larger than ``limit_bytes``, before room is made for
    it, if there is no room, or if it is not as large as announced.
    """
    if total_bytes > limit_bytes:
        raise FramingError(
            f"a message of {total_bytes} bytes was announced, at most {limit_bytes} are taken; "
            "raise max_message_bytes in the settings"
        )
    buffer = _room(total_bytes)
    for chunk in chunks:
        if buffer.tell() + len(chunk) > total_bytes:
            raise FramingError(f"more than the {total_bytes} bytes that were announced")
        buffer.write(chunk)
    if buffer.tell() != total_bytes:
        raise FramingError(f"{buffer.tell()} bytes of {total_bytes} that were announced")
    return buffer.getvalue()  # the buffer itself: its size is exact


def _room(total_bytes: int) -> BytesIO:
    buffer = BytesIO()
    if total_bytes:
        try:
            buffer.seek(total_bytes - 1)
            buffer.write(b"\0")
        except (MemoryError, OverflowError):
            raise FramingError(f"no memory for a message of {total_bytes} bytes") from None
        buffer.seek(0)
    return buffer
