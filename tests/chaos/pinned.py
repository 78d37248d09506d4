"""Measured times and memory in a client's reply, made the same in every run.

Their digits are part of the message, so that without this the bytes of two equal runs differ by a
few.  Everything else about a reply's size is compared exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

PINNED_CALL: Final = "strategies.wire:encode_result"
_SECONDS: Final = 0.125
_MEMORY_BYTES: Final = 2**27


def pinned(encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """``encode`` of a result whose measurements are these."""

    @functools.wraps(encode)
    def call(result: Any) -> bytes:
        if hasattr(result, "delta"):
            seconds = dict.fromkeys(result.seconds, _SECONDS)
            result = replace(result, seconds=seconds, peak_memory_bytes=_MEMORY_BYTES)
        return encode(result)

    return call
