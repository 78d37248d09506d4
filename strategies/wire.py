"""Nouns ⇄ bytes ⇄ Flower records.  The only place that knows the wire format; nothing is unpickled.

A message is one safetensors file: the tensors, and in its metadata a JSON header with the format's
version, the message's kind and every field that is not a tensor.  The same bytes travel through
Flower, between processes on one machine, and through the in-process transport.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeVar

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, RecordDict
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from strategies.errors import TransportError, WireError
from strategies.types import (
    Array,
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

VERSION: Final = "1"
MAX_HEADER_BYTES: Final = 64 * 2**20
Kind = Literal["assignment", "update", "failure", "profile", "recipe"]
T = TypeVar("T")

_EXAMPLES: Final = "#examples"
_SKETCH: Final = "~"


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


def encode_assignment(assignment: Assignment, tensors: Tensors) -> bytes:
    """An assignment with the state its client starts from."""
    return _pack("assignment", assignment.plain(), tensors)


def decode_assignment(message: bytes) -> tuple[Assignment, Tensors]:
    """Raises: WireError if ``message`` is not an assignment."""
    header, tensors = _unpack(message, "assignment")
    return _validated(Assignment, header), tensors


def encode_result(result: Update | ClientFailure) -> bytes:
    """A client's answer, good or bad."""
    if isinstance(result, ClientFailure):
        return _pack("failure", asdict(result), {})
    names = _UpdateHeader.__dataclass_fields__
    header = {name: value for name, value in _plain(result).items() if name in names}
    counts = {ParamKey(group, _EXAMPLES): count for group, count in result.num_examples.items()}
    sketches = {
        ParamKey(key.group, _SKETCH + key.part): array for key, array in result.sketches.items()
    }
    return _pack("update", header, {**result.delta, **counts, **sketches})


def decode_result(message: bytes) -> Update | ClientFailure:
    """Raises: WireError if ``message`` is neither an update nor a failure."""
    if kind_of(message) == "failure":
        return _validated(ClientFailure, _unpack(message, "failure")[0])
    header, tensors = _unpack(message, "update")
    fields = _validated(_UpdateHeader, header)
    return Update(
        assignment_id=fields.assignment_id,
        client_id=fields.client_id,  # type: ignore[arg-type]  # text until the plan vouches for it
        plan_hash=fields.plan_hash,
        delta={
            key: value
            for key, value in tensors.items()
            if key.part != _EXAMPLES and not key.part.startswith(_SKETCH)
        },
        num_examples={
            key.group: value.astype(np.int64)
            for key, value in tensors.items()
            if key.part == _EXAMPLES
        },
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
    return _pack("recipe", {"recipe": recipe, "groups": list(groups)}, {})


def decode_recipe(message: bytes) -> tuple[str, list[GroupName]]:
    """Raises: WireError if ``message`` is not a request for a profile."""
    body = _unpack(message, "recipe")[0]
    return str(body["recipe"]), [GroupName(str(name)) for name in body["groups"]]


def encode_profile(profile: ClientProfile, base_values: Tensors) -> bytes:
    """A client's description of itself, with the base's values of the groups asked for."""
    return _pack("profile", asdict(profile), base_values)


def decode_profile(message: bytes) -> tuple[ClientProfile, Tensors]:
    """Raises: WireError if ``message`` is no profile, TransportError if it says why not."""
    if kind_of(message) == "failure":
        raise TransportError(_validated(ClientFailure, _unpack(message, "failure")[0]).detail)
    header, tensors = _unpack(message, "profile")
    return _validated(ClientProfile, header), tensors


def kind_of(message: bytes) -> str:
    """What a message says it is."""
    return str(_header(message).get("kind"))


def fields_of(message: bytes) -> Mapping[str, Any]:
    """Every field of a message that is not a tensor, unvalidated; tensors are not looked at."""
    body: dict[str, Any] = _header(message)["body"]
    return body


def to_record(message: bytes) -> RecordDict:
    """Wrap a message for Flower as one opaque byte array."""
    array = FlowerArray(dtype="uint8", shape=(len(message),), stype="perennial", data=message)
    return RecordDict({"message": ArrayRecord({"bytes": array})})


def from_record(record: RecordDict) -> bytes:
    """The message in a Flower record.

    Raises: WireError if the record is not one of ours.
    """
    try:
        return bytes(record.array_records["message"]["bytes"].data)
    except KeyError:
        keys = ", ".join(record) or "nothing"
        raise WireError(f"Flower record holds {keys}, expected one array message/bytes") from None


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


def _pack(kind: Kind, header: Mapping[str, Any], tensors: Tensors) -> bytes:
    meta = json.dumps({"version": VERSION, "kind": kind, "body": header})
    named = {key.text: np.asarray(value, order="C") for key, value in tensors.items()}
    return save(named, metadata={"perennial": meta})


def _unpack(message: bytes, expected: Kind) -> tuple[dict[str, Any], dict[ParamKey, Array]]:
    header = _header(message)
    if header.get("kind") != expected:
        raise WireError(f"message of kind {header.get('kind')!r}, expected {expected!r}")
    try:
        tensors = load(message)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype NumPy lacks
        raise WireError(f"damaged {expected} of {len(message)} bytes: {error}") from None
    return header["body"], {_key(name): value for name, value in tensors.items()}


def _header(message: bytes) -> dict[str, Any]:
    """The JSON header, read before anything is allocated for tensors."""
    try:
        (length,) = struct.unpack_from("<Q", message)
        if length > min(MAX_HEADER_BYTES, len(message) - 8):
            raise WireError(f"header of {length} bytes in a message of {len(message)}")
        header = json.loads(json.loads(message[8 : 8 + length])["__metadata__"]["perennial"])
        version, header["body"] = str(header["version"]), dict(header["body"])
    except (struct.error, ValueError, KeyError, TypeError, RecursionError):
        raise WireError(f"{len(message)} bytes that are not a perennial message") from None
    if version != VERSION:
        raise WireError(
            f"message format {version!r}, this program speaks {VERSION!r}; upgrade the older side"
        )
    return header  # type: ignore[no-any-return]  # JSON


def _key(name: str) -> ParamKey:
    try:
        return ParamKey.parse(name)
    except ValueError as error:
        raise WireError(str(error)) from None


def _validated(noun: type[T], header: Mapping[str, Any]) -> T:
    try:
        return TypeAdapter(noun).validate_python(header)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise WireError(
            f"{noun.__name__}.{where}: {first['msg']}, found {first['input']!r:.80}"
        ) from None
