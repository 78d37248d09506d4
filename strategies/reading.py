"""A message read as a noun: every field understood, none left over, all within the limits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from strategies.envelope import Kind, unpack
from strategies.errors import WireError
from strategies.limits import readable
from strategies.types import Array, ParamKey
from strategies.vetting import fault_of, unread

T = TypeVar("T")


def read(noun: type[T], message: bytes, kind: Kind) -> tuple[T, dict[ParamKey, Array]]:
    """A message's noun, every field of which was understood and lies within the limits."""
    header, tensors = unpack(message, kind)
    found = _validated(noun, header)
    if fault := fault_of(found):
        raise WireError(f"{noun.__name__}: {fault}")
    if unread(header, found):
        raise WireError(f"{noun.__name__}: holds fields or values that are not of this message")
    return found, tensors


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
