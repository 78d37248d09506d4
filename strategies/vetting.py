"""Is a decoded noun what its fields promise?  Ranges, text, sizes: all that needs no plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from itertools import chain
from typing import Any, Final

from strategies.limits import (
    MAX_AXES,
    MAX_AXIS,
    MAX_BYTES,
    MAX_COUNT,
    MAX_ENTRIES,
    MAX_INDEX,
    MAX_RATE,
    MAX_RECIPE_CHARS,
    MAX_SECONDS,
    MAX_SEED,
    is_assignment_id,
    is_identifier,
    is_name,
    is_readable,
)
from strategies.types import ClientProfile, ModelDescription

Range = tuple[float, float]
_LARGEST: Final = 1e300
_ANY: Final[Range] = (-_LARGEST, _LARGEST)
_SIZE: Final[Range] = (0, MAX_INDEX)
_SIZES: Final = (
    "steps", "first_step", "total_steps", "round_index", "step_index", "tasks", "seen_tasks", "met",
    "max_rank", "num_blocks", "block", "batches", "release",
)  # fmt: skip
_COUNTS: Final = (
    "capacity", "max_examples", "num_train", "num_test", "num_examples", "num_correct", "num_lost",
    "num_gained", "num_compared", "num_parameters", "longest_example",
)  # fmt: skip
_BYTES: Final = (
    "capacity_bytes", "memory_bytes", "memory_limit_bytes", "resident_bytes", "activation_bytes",
    "free_disk_bytes", "peak_memory_bytes",
)  # fmt: skip
_RATES: Final = (
    "flops_per_second", "uplink_bytes_per_second", "downlink_bytes_per_second",
    "uplink_limit_bytes_per_second",
)  # fmt: skip
_SMALL: Final = (
    "learning_rate", "head_learning_rate", "weight_decay", "max_grad_norm", "scale", "link_error",
    "tokens_per_example",
)  # fmt: skip
RANGES: Final[Mapping[str, Range]] = {
    **dict.fromkeys(_SIZES, _SIZE),
    **dict.fromkeys(_COUNTS, (0, MAX_COUNT)),
    **dict.fromkeys(_BYTES, (0, MAX_BYTES)),
    **dict.fromkeys(_RATES, (0, MAX_RATE)),
    **dict.fromkeys(_SMALL, (0, 1e12)),
    "batch_size": (1, MAX_INDEX),
    "exchange_seconds": (0, MAX_SECONDS),
    "linear": (1, MAX_AXIS),
    "loss_rise": (0, _LARGEST),
    "loss_sum": (0, math.inf),
    "metrics": _ANY,
    "micro_batch_size": (1, MAX_INDEX),
    "params": _ANY,
    "parts": (0, MAX_AXIS),
    "rank": (1, MAX_INDEX),
    "ranks": _SIZE,
    "seconds": (0, MAX_SECONDS),
    "seed": (0, MAX_SEED),
    "share": (0, 1),
    "statistics": _ANY,
    "step": (-1, MAX_INDEX),
    "step_seconds": (0, MAX_SECONDS),
    "task_index": (-1, MAX_INDEX),
}
"""Of every number in a message by the name of its field, both ends included."""
# An evaluation that looks at nothing has no loss.  A metric or a statistic that is no number is
# named as such by who examines the update.
NOT_A_NUMBER: Final = frozenset({"loss_sum", "metrics", "statistics"})

Fault = str
"""What is wrong, empty if nothing is."""


def fault_of(value: object, name: str = "") -> Fault:
    """The first thing wrong with a noun, a container or a single value of field ``name``."""
    if is_dataclass(value) and not isinstance(value, type):
        found = (fault_of(getattr(value, field.name), field.name) for field in fields(value))
        return next(filter(None, found), "") or _form(value)
    if isinstance(value, str):
        return _text(value, name)
    if isinstance(value, Mapping):
        keys = (fault_of(key, f"{name} key") for key in value)
        return _many(value, name) or next(
            filter(None, chain(keys, (fault_of(item, name) for item in value.values()))), ""
        )
    if isinstance(value, tuple | list):
        return _many(value, name) or next(
            filter(None, (fault_of(item, name) for item in value)), ""
        )
    return "" if value is None or isinstance(value, bool) else _number(value, name)


def _many(value: Mapping[Any, Any] | tuple[Any, ...] | list[Any], name: str) -> Fault:
    return f"{name} has {len(value)} entries" if len(value) > MAX_ENTRIES else ""


def _number(value: object, name: str) -> Fault:
    if not isinstance(value, int | float):
        return f"{name} is a {type(value).__name__}"
    if name in NOT_A_NUMBER and isinstance(value, float) and not math.isfinite(value):
        return "" if value != -math.inf else f"{name} is -inf"
    low, high = RANGES[name]
    if low <= value <= high:
        return ""
    return f"{name} is {str(value)[:40]}, expected {low:g} to {high:g}"


def _text(value: str, name: str) -> Fault:
    if name in ("client_id", "run_id", "plan_hash"):
        fits, expected = is_identifier(value), "letters, digits, dots, dashes, underscores"
    elif name == "assignment_id":
        # A client that cannot read what it was asked cannot say which assignment it fails.
        fits, expected = is_assignment_id(value) or not value, "an assignment's id"
    elif name == "ranks key":
        fits, expected = all(map(is_name, value.split("|"))) and value.count("|") == 1, "group|part"
    elif name.endswith(" key"):
        fits, expected = is_name(value), "a name of one line"
    elif name == "recipe":
        fits, expected = is_readable(value, MAX_RECIPE_CHARS), "one line of JSON"
    else:
        fits, expected = is_readable(value), "one line of text"
    return "" if fits else f"{name} is {value!r:.80}, expected {expected}"


def _form(noun: object) -> Fault:
    """What a client says of itself and its model must fit together."""
    if isinstance(noun, ModelDescription):
        return _model_form(noun)
    return _profile_form(noun) if isinstance(noun, ClientProfile) else ""


def _profile_form(profile: ClientProfile) -> Fault:
    counted = {len(profile.num_train), len(profile.num_test), len(profile.tasks)}
    if len(counted) != 1:
        return f"num_train and num_test must count each of {len(profile.tasks)} tasks"
    return ""


def _model_form(model: ModelDescription) -> Fault:
    names = [group.name for group in model.groups]
    if len(set(names)) != len(names) or not all(map(is_name, names)):
        return "groups must have names, each its own, without a bar"
    for group in model.groups:
        if not all(map(is_name, group.parts)) or any(
            len(s) > MAX_AXES for s in group.parts.values()
        ):
            return f"parts of {group.name} must have names and at most {MAX_AXES} axes"
    return ""


def unread(header: object, noun: Any) -> bool:  # any of the nouns
    """Whether ``header`` holds anything that reading it as ``noun`` left out or made other."""
    return not _within(header, asdict(noun))


def _within(part: object, whole: object) -> bool:
    if isinstance(part, bool) or isinstance(whole, bool):
        return part is whole
    if isinstance(part, dict):
        return isinstance(whole, Mapping) and all(
            key in whole and _within(value, whole[key]) for key, value in part.items()
        )
    if isinstance(part, list):
        return (
            isinstance(whole, list | tuple)
            and len(part) == len(whole)
            and all(_within(a, b) for a, b in zip(part, whole, strict=True))
        )
    if isinstance(part, float) and math.isnan(part):
        return isinstance(whole, float) and math.isnan(whole)
    number = isinstance(part, int | float)
    return part == whole and number is isinstance(whole, int | float)
