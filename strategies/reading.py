"""A message read as a noun: every field understood, none left over, all within the limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache, lru_cache
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from strategies.envelope import Kind, unpack
from strategies.errors import WireError
from strategies.limits import readable
from strategies.types import Array, ClientProfile, ModelDescription, ParamKey, TaskInfo
from strategies.vetting import fault_of, unread

T = TypeVar("T")
_KNOWN: Final = 4  # models and lists of tasks that are remembered: those of the runs at hand
_NO_MODEL: Final = asdict(
    ModelDescription(base_digest="", num_parameters=0, num_blocks=0, groups=())
)


def read(noun: type[T], message: bytes, kind: Kind) -> tuple[T, dict[ParamKey, Array]]:
    """A message's noun, every field of which was understood and lies within the limits."""
    header, tensors = unpack(message, kind)
    return _checked(noun, header), tensors


def read_profile(message: bytes) -> tuple[ClientProfile, dict[ParamKey, Array]]:
    """As ``read``; a model and tasks that many clients name alike are in memory once.

    The model is also looked through once: it is nearly all of a profile.
    """
    header, tensors = unpack(message, "profile")
    model = _model(json.dumps(header.get("model")))
    found = _checked(ClientProfile, {**header, "model": _NO_MODEL})
    return replace(found, model=model, tasks=_the_one(found.tasks)), tensors


@lru_cache(maxsize=_KNOWN)
def _model(text: str) -> ModelDescription:
    return _checked(ModelDescription, json.loads(text))


@lru_cache(maxsize=_KNOWN)
def _the_one(tasks: tuple[TaskInfo, ...]) -> tuple[TaskInfo, ...]:
    """Those that came first of all that are equal."""
    return tasks


def _checked(noun: type[T], header: Mapping[str, Any]) -> T:
    found = _validated(noun, header)
    if fault := fault_of(found):
        raise WireError(f"{noun.__name__}: {fault}")
    if unread(header, found):
        raise WireError(f"{noun.__name__}: holds fields or values that are not of this message")
    return found


def alone(noun: type[T], message: bytes, kind: Kind) -> T:
    """The noun of a message that has no tensors."""
    found, tensors = read(noun, message, kind)
    if tensors:
        raise WireError(f"{kind} with {len(tensors)} tensors, expected none")
    return found


@cache
def _reader(noun: Any) -> TypeAdapter[Any]:
    """Made once per noun: it takes longer than reading a message."""
    return TypeAdapter(noun)


def _validated(noun: type[T], header: Mapping[str, Any]) -> T:
    key: Any = noun  # a class is hashable, which mypy does not see of a type[T]
    try:
        found: T = _reader(key).validate_python(header)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise WireError(
            readable(f"{noun.__name__}.{where}: {first['msg']}, found {first['input']!r:.80}")
        ) from None
    return found
