"""Loading many modules at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """No garbage is collected meanwhile, and what is there afterwards is not looked at again.

    A million objects come with torch and transformers, all of them to stay, and Python goes through
    them again and again: a fifth of the processor time of importing them (docs/performance.md).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
