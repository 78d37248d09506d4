"""Nouns ⇄ bytes ⇄ Flower records.  The only place that knows the wire format; nothing is unpickled.

The same bytes travel through Flower, between processes on one machine, and through the in-process
transport.  ``envelope.py`` is their frame, ``limits.py`` their bounds.  What is read back is a noun
all of whose fields were understood and lie within the limits; whether it is an answer to what was
asked, only the plan can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from strategies.envelope import header_of, pack
from strategies.errors import TransportError, WireError
from strategies.limits import MAX_NAME_CHARS, is_readable, readable
from strategies.reading import alone, read, read_profile
from strategies.types import (
    Assignment,
    ClientFailure,
    ClientProfile,
    GroupName,
    ParamKey,
    Remembered,
    Score,
    Tensors,
    Update,
)

if TYPE_CHECKING:
    from flwr.app import RecordDict

_EXAMPLES: Final = "#examples"
_SKETCH: Final = "~"
_STYPE: Final = "perennial"


@dataclass(frozen=True, slots=True, kw_only=True)
class _UpdateHeader:
    """The fields of an Update that are not tensors."""

    assignment_id: str
    client_id: str
    plan_hash: str
    scores: tuple[Score, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    statistics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    remembered: tuple[Remembered, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A request for a profile."""

    recipe: str
    groups: tuple[GroupName, ...]


def encode_assignment(assignment: Assignment, tensors: Tensors) -> bytes:
    """An assignment with the state its client starts from."""
    return pack("assignment", assignment.plain(), tensors)


def decode_assignment(message: bytes) -> tuple[Assignment, Tensors]:
    """Raises: WireError if ``message`` is not an assignment."""
    return read(Assignment, message, "assignment")


def encode_result(result: Update | ClientFailure) -> bytes:
    """A client's answer, good or bad; of a failure's detail what fits one safe line."""
    if isinstance(result, ClientFailure):
        return pack("failure", asdict(replace(result, detail=readable(result.detail))), {})
    names = _UpdateHeader.__dataclass_fields__
    header = {name: value for name, value in _plain(result).items() if name in names}
    counts = {ParamKey(group, _EXAMPLES): count for group, count in result.num_examples.items()}
    sketches = {
        ParamKey(key.group, _SKETCH + key.part): array for key, array in result.sketches.items()
    }
    return pack("update", header, {**result.delta, **counts, **sketches})


def decode_result(message: bytes) -> Update | ClientFailure:
    """Raises: WireError if ``message`` is neither an update nor a failure."""
    if kind_of(message) == "failure":
        return alone(ClientFailure, message, "failure")
    fields, tensors = read(_UpdateHeader, message, "update")
    if fault := _counts_fault(tensors):
        raise WireError(fault)
    return Update(
        assignment_id=fields.assignment_id,
        client_id=fields.client_id,  # type: ignore[arg-type]  # text until the plan vouches for it
        plan_hash=fields.plan_hash,
        delta={
            key: value
            for key, value in tensors.items()
            if key.part != _EXAMPLES and not key.part.startswith(_SKETCH)
        },
        num_examples={key.group: value for key, value in tensors.items() if key.part == _EXAMPLES},
        scores=fields.scores,
        metrics=fields.metrics,
        seconds=fields.seconds,
        statistics=fields.statistics,  # type: ignore[arg-type]  # as above
        sketches={
            ParamKey(key.group, key.part.removeprefix(_SKETCH)): value
            for key, value in tensors.items()
            if key.part.startswith(_SKETCH)
        },
        peak_memory_bytes=fields.peak_memory_bytes,
        remembered=fields.remembered,
    )


def encode_recipe(recipe: str, groups: Sequence[GroupName]) -> bytes:
    """A request for a profile: the recipe as JSON, and groups whose base values are wanted."""
    return pack("recipe", {"recipe": recipe, "groups": list(groups)}, {})


def decode_recipe(message: bytes) -> tuple[str, list[GroupName]]:
    """Raises: WireError if ``message`` is not a request for a profile."""
    request = alone(_Request, message, "recipe")
    return request.recipe, list(request.groups)


def encode_profile(profile: ClientProfile, base_values: Tensors) -> bytes:
    """A client's description of itself, with the base's values of the groups asked for."""
    return pack("profile", asdict(profile), base_values)


def decode_profile(message: bytes) -> tuple[ClientProfile, Tensors]:
    """Raises: WireError if ``message`` is no profile, TransportError if it says why not."""
    if kind_of(message) == "failure":
        raise TransportError(alone(ClientFailure, message, "failure").detail)
    profile, tensors = read_profile(message)
    for key, value in tensors.items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise WireError(f"base values {key} are {value.dtype}, expected finite float32")
    return profile, tensors


def kind_of(message: bytes) -> str:
    """What a message says it is."""
    kind: str = header_of(message)["kind"]
    return kind


def fields_of(message: bytes) -> Mapping[str, Any]:
    """Every field of a message that is not a tensor, unvalidated; tensors are not looked at."""
    body: dict[str, Any] = header_of(message)["body"]
    return body


def text_of(message: bytes, name: str) -> str:
    """One field of a message that should be text; empty where it is none that is safe to show."""
    found = fields_of(message).get(name)
    return found if isinstance(found, str) and is_readable(found) else ""


def to_record(message: bytes) -> RecordDict:
    """Wrap a message for Flower as one opaque byte array."""
    from flwr.app import Array, ArrayRecord, RecordDict  # slow to load, and of no use elsewhere

    array = Array(dtype="uint8", shape=(len(message),), stype=_STYPE, data=message)
    return RecordDict({"message": ArrayRecord({"bytes": array})})


def from_record(record: RecordDict) -> bytes:
    """The message in a Flower record.

    Raises: WireError if the record is not one of ours.
    """
    from flwr.app import ArrayRecord

    if list(record) == ["message"] and isinstance(found := record["message"], ArrayRecord):
        arrays = list(found.values())
        if list(found) == ["bytes"] and arrays[0].stype == _STYPE:
            return bytes(arrays[0].data)
    keys = readable(", ".join(record) or "nothing", MAX_NAME_CHARS)
    raise WireError(f"Flower record holds {keys}, expected one array message/bytes")


def _counts_fault(tensors: Tensors) -> str:
    for key, value in tensors.items():
        if key.part == _EXAMPLES and (value.dtype != np.int64 or value.ndim > 1):
            return (
                f"counts of {key.group} are {value.dtype} {value.shape}, expected int64, one axis"
            )
        if key.part.startswith(_SKETCH) and value.dtype.kind != "f":
            return f"{key} is {value.dtype}, expected floating point"
    return ""


def _plain(result: Update) -> dict[str, Any]:
    return {
        "assignment_id": result.assignment_id,
        "client_id": result.client_id,
        "plan_hash": result.plan_hash,
        "scores": [asdict(score) for score in result.scores],
        "metrics": dict(result.metrics),
        "seconds": dict(result.seconds),
        "statistics": {group: dict(values) for group, values in result.statistics.items()},
        "peak_memory_bytes": result.peak_memory_bytes,
        "remembered": [asdict(sums) for sums in result.remembered],
    }
