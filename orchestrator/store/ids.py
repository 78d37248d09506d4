"""Run ids, and finding a run by part of one."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from strategies.errors import RunNotFoundError

LATEST: Final = "latest"
_ALPHABET: Final = "23456789abcdefghjkmnpqrstuvwxyz"  # nothing that looks like something else


def new_run_id(at: datetime) -> str:
    """``20261121-011844-k3f9``: sorts by time, short enough to type."""
    return f"{at:%Y%m%d-%H%M%S}-{''.join(secrets.choice(_ALPHABET) for _ in range(4))}"


def resolve(text: str, known: Sequence[str]) -> str:
    """The one id that ``text`` names: whole, as the start of one, or ``latest``.

    ``known`` is newest first.
    Raises: RunNotFoundError naming the nearest ids.
    """
    if text in known:
        return text
    if text == LATEST and known:
        return known[0]
    starting = [run_id for run_id in known if run_id.startswith(text)]
    if len(starting) == 1:
        return starting[0]
    if starting:
        raise RunNotFoundError(
            f"{text!r} is the start of {len(starting)} runs: {', '.join(starting[:5])}"
        )
    if not known:
        raise RunNotFoundError(f"no run {text!r}: this database holds no runs yet")
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.3) or list(known[:3])
    raise RunNotFoundError(f"no run {text!r}; nearest: {', '.join(near)}. See `perennial runs`")
