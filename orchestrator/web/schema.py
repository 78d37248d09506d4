"""Pydantic models of the documents' ``TypedDict``s, for the OpenAPI description alone.

What is sent is the document itself: it is held to its type by tests, not at every request.
"""

from __future__ import annotations

import types
import typing
from functools import cache
from typing import Any

from pydantic import BaseModel, create_model


@cache
def model_of(kind: Any) -> type[BaseModel]:  # a TypedDict class has no type of its own
    """The model with the keys of a ``TypedDict``, all of them required."""
    hints = typing.get_type_hints(kind)
    fields: dict[str, Any] = {name: (_annotation(hint), ...) for name, hint in hints.items()}
    return create_model(kind.__name__, __doc__=kind.__doc__, **fields)


def _annotation(hint: Any) -> Any:
    if typing.is_typeddict(hint):
        return model_of(hint)
    arguments = typing.get_args(hint)
    if not arguments or typing.get_origin(hint) is typing.Literal:
        return hint
    inner = tuple(_annotation(each) for each in arguments)
    if isinstance(hint, types.UnionType):
        return typing.Union[inner]  # noqa: UP007 - made of values
    return typing.get_origin(hint)[inner if len(inner) > 1 else inner[0]]
