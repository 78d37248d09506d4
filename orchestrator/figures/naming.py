"""The order and the short names of the parts of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def in_model_order(groups: Iterable[str]) -> list[str]:
    """Blocks as they are numbered, what is outside of them last."""
    return sorted(groups, key=block_first)


def block_of(group: str) -> str:
    """The name up to its first number, or nothing."""
    match = re.match(r"(.*?\.)?\d+(?=\.|$)", group)
    return match.group() if match else ""


def block_first(group: str) -> tuple[Any, ...]:
    """Key by which groups of one block stand together."""
    block = block_of(group)
    return (not block, natural(block), natural(group))


def natural(name: str) -> tuple[Any, ...]:
    """Numbers in names compare as numbers, so that block 10 follows block 9."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"[._-]", name))


def told_apart(groups: Iterable[str]) -> dict[str, str]:
    """The groups without the words that begin all names that have a block's number."""
    listed = list(groups)
    numbered = [group for group in listed if block_of(group)]
    words = {group.split(".")[0] for group in numbered}
    while numbered and len(words) == 1 and not (first := words.pop()).isdigit():
        numbered = [group.removeprefix(f"{first}.") for group in numbered]
        words = {group.split(".")[0] for group in numbered}
    ends = iter(numbered)
    return {group: next(ends) if block_of(group) else group for group in listed}
